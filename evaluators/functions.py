"""A plain function as an evaluator of one metric: the decorator `alignbench.metric`. Imports no torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from alignbench.api import PROMPT, ImageBatch, Measured, Metric, Reference, Rows
from alignbench.files import digest_of, file_sha256
from alignbench.metrics.clusters import resampled_interval
from alignbench.registry.protocol import EvaluatorCard
from alignbench.registry.schema import Scalar

if TYPE_CHECKING:
    from torch import Tensor

NEEDS = {"prompts": "prompts", "originals": "originals"}
"""{argument of the function: what the card then says that an image set must come with}."""
FACTS = ("title", "direction", "digits", "networks", "doc")
"""What a caller may say of the metric; everything else is about the evaluator."""


@overload
def metric(function: Callable[..., Tensor]) -> Callable[..., Any]: ...
@overload
def metric(**card: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Any]]: ...
def metric(function: Callable[..., Tensor] | None = None, **card: Any) -> Any:
    """Make a function a metric: `@metric`, or `@metric(direction="lower", digits=3)`.

    The function is called with `images`, [n, 3, H, W] float32 in [-1, 1] made of the 8-bit images that are
    scored, and returns one number for each, [n]. Arguments behind it are filled by name: `prompts` (n texts),
    `labels` ([n] int64, or None), `originals` (in reconstruction, as `images`), and the options of the card.
    The metric is the mean with a 95 % bootstrap interval: over images, or over prompts if it asks for them.

    Args:
        function: it names evaluator and metric, and the first line of its docstring is the summary.
        card: keys of `protocol.EvaluatorCard`, and of the metric `title`, `direction` (default: higher is
            better), `digits` (default 3), `networks` and `doc`.

    Returns:
        What builds the evaluator and carries the card, for `--plugin` and `protocol.evaluators`.
    """
    if function is None:
        return functools.partial(metric, **card)
    arguments = list(inspect.signature(function).parameters)[1:]
    name = str(card.get("name") or function.__name__.replace("_", "-"))
    title = str(card.get("title") or function.__name__.replace("_", " "))
    summary = (inspect.getdoc(function) or "").partition("\n")[0]

    @functools.wraps(function)
    def build(card: EvaluatorCard, *, options: Mapping[str, Scalar], **unused: Any) -> FunctionMetric:
        return FunctionMetric(name, function, arguments, options)

    fact = {"title": title, "direction": "higher", "digits": 3, "column": name, "doc": summary}
    fact |= {key: card.pop(key) for key in FACTS if key in card}
    facts = {
        "name": name,
        "title": title,
        "summary": summary,
        "needs": [NEEDS[argument] for argument in arguments if argument in NEEDS],
        "metrics": {name: fact | ({"per": "prompt"} if "prompts" in arguments else {})},
    }
    vars(build)["card"] = {"kind": "evaluator", **facts, **card}
    return build


class FunctionMetric:
    """A function as an `api.Evaluator`; its column has the metric's name."""

    def __init__(
        self, name: str, function: Callable[..., Tensor], arguments: list[str], options: Mapping[str, Scalar]
    ) -> None:
        self.name, self.function, self.arguments, self.options = name, function, arguments, options
        # What else the file holds may be called by the function.
        source = file_sha256(Path(inspect.getfile(function)))
        self.identity = digest_of({"metric": name, "source": source, "options": dict(options)})

    def measure(self, batch: ImageBatch) -> Rows:
        """Call the function; raises ValueError unless it gives one finite number for each image."""
        offered = {
            "prompts": [prompt.text for prompt in batch.prompts],
            "labels": batch.labels,
            "originals": None if batch.originals is None else batch.originals.float() / 127.5 - 1,
        }
        chosen = {key: value for key, value in offered.items() if key in self.arguments}
        values = self.function(batch.images.float() / 127.5 - 1, **chosen, **self.options)
        if tuple(values.shape) != (len(batch),) or not bool(values.isfinite().all()):
            raise ValueError(f"{self.name} gave no finite number for each of {len(batch)} images")
        return {self.name: values.detach().double().cpu().numpy()}

    def score(self, samples: Measured, reference: Reference | None) -> list[Metric]:
        """Return the mean with its interval."""
        values = samples.column(self.name)
        alone = "prompts" not in self.arguments  # else images of one prompt share what it brings
        groups = np.arange(len(values)) if alone else samples.column(PROMPT)
        interval = resampled_interval(values, groups)
        return [Metric(self.name, float(values.mean()), len(values), interval=interval)]
