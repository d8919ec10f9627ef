"""A plain function as a reward: the decorator `alignbench.reward`. Imports no torch; the function may."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, overload

from alignbench.api import ScoreRequest, Scores

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NEEDS = {"prompts": "text", "labels": "label"}
"""{argument of the function: what the card then says that the reward needs}."""


@overload
def reward(function: Callable[..., Tensor]) -> Callable[..., Any]: ...
@overload
def reward(**card: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Any]]: ...
def reward(function: Callable[..., Tensor] | None = None, **card: Any) -> Any:
    """Make a function a reward: `@reward`, or `@reward(direction="lower", differentiable=True)`.

    The function is called with `images`, [N, 3, H, W] float32 in [-1, 1] (decoders may leave that range), and
    returns [N] scores. Arguments behind it are filled by name: `prompts` (N texts), `labels` ([N] int64),
    `originals` (the real image behind each one, as `images`), and the options of the card.

    Args:
        function: it gives the reward its name, and the first line of its docstring is the summary.
        card: keys of `schema.RewardCard` that differ from: larger is better, no gradient, no options.

    Returns:
        What builds the reward and carries the card, for `--plugin`; the function is its `__wrapped__`.
    """
    if function is None:
        return functools.partial(reward, **card)
    arguments = list(inspect.signature(function).parameters)[1:]

    @functools.wraps(function)
    def build(device: torch.device, **options: Any) -> FunctionReward:
        return FunctionReward(function, arguments, options)

    facts = {
        "title": function.__name__.replace("_", " "),
        "summary": (inspect.getdoc(function) or "").partition("\n")[0],
        "direction": "higher",
        "differentiable": False,
        "scope": "distance" if "originals" in arguments else "image",
        "needs": [NEEDS[name] for name in arguments if name in NEEDS],
    }
    vars(build)["card"] = {"kind": "reward", **facts, **card}
    return build


class FunctionReward:
    """A function as an `api.Reward`, and as an `api.Distance` if it compares with the originals."""

    def __init__(
        self, function: Callable[..., Tensor], arguments: list[str], options: Mapping[str, Any]
    ) -> None:
        self.function, self.arguments, self.options = function, arguments, options

    def score(self, request: ScoreRequest) -> Scores:
        """Call the function; a score that is not finite is not valid."""
        originals = None if request.reference is None else 2 * request.reference - 1
        offered = {"prompts": request.texts, "labels": request.labels, "originals": originals}
        values = self._call(2 * request.images - 1, **offered)
        return Scores(values, values.isfinite())

    def prepare(self, reference: Tensor) -> Tensor:
        return reference

    def distance(self, images: Tensor, prepared: Tensor, *, repeats: int) -> Tensor:
        return self._call(images, originals=prepared.repeat_interleave(repeats, dim=0))

    def _call(self, images: Tensor, **offered: Any) -> Tensor:
        from alignbench.rewards.requests import check_values

        chosen = {name: value for name, value in offered.items() if name in self.arguments}
        values = self.function(images, **chosen, **self.options)
        check_values(values, len(images))
        return values
