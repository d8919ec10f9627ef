"""Plug-ins that answer wrongly from some call on; mended, the same command ends as if nothing had been.

Half of the trials break what a plug-in stands on (its file stays, so the run is continued), the others the
file itself (another file is another run, which starts anew).
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.drills.drill import SMALL, Drill, Lost, check_failed, check_words, in_process

WRONG = {
    "reward": (
        "column", "short", "long", "scalar", "none", "array", "list", "whole", "complex", "nan", "inf", "meta",
        "error", "silent", "deep", "memory", "speechless", "cancelled", "leave", "leave-with-words",
    ),
    "method": (
        "none", "tuple", "error", "leave", "cancelled", "miscounted", "no-number", "loss-tensor", "loss-vector",
        "loss-nan", "loss-loose", "loss-meta", "loss-no-number", "loss-backward", "loss-error",
    ),
    "evaluator": (
        "none", "list", "short", "scalar", "nan", "objects", "tensor", "ragged", "unsaid", "error", "leave",
        "cancelled", "score-none", "score-number", "score-other-name", "score-no-number", "score-twice",
        "score-interval", "score-error", "score-leave",
    ),
}  # fmt: skip
"""{part: ways to be wrong}, as `SOURCE` understands them."""
NAMES = {"reward": "drilled-reward", "function": "drilled_function", "method": "Drilled", "evaluator": "grey"}
"""{part: what a message must say}."""

SOURCE = '''
import asyncio, collections, os
import numpy as np
import torch
import alignbench as ab
from alignbench import api
from alignbench.methods.ar_grpo import ArGrpo
from alignbench.registry.lookup import Registry

FAULT = {fault!r}
SEEN = collections.Counter()

class Speechless(Exception):
    def __str__(self):
        raise ValueError("no words")

def wrong(part):
    """How `part` is to be wrong now; None: not at all."""
    fault = FAULT or os.environ.get("DRILLED", "")
    SEEN[fault, part] += 1
    broken, _, rest = fault.partition(" ")
    how, _, after = rest.partition(" ")
    if broken != part or SEEN[fault, part] <= int(after):
        return None
    if how.endswith("error"):
        raise ZeroDivisionError("division\\nby [red]zero[/red]\\x1b[31m")
    if how == "silent":
        raise AssertionError
    if how == "deep":
        raise RecursionError("maximum recursion depth exceeded")
    if how == "memory":
        raise MemoryError
    if how == "speechless":
        raise Speechless
    if how == "cancelled":
        raise asyncio.CancelledError
    if how.endswith("leave"):
        raise SystemExit(0)
    if how == "leave-with-words":
        raise SystemExit("good bye")
    return how

VALUES = {{
    "column": lambda v: v[:, None], "short": lambda v: v[1:], "long": lambda v: torch.cat([v, v]),
    "scalar": lambda v: v.mean(), "none": lambda v: None, "array": lambda v: v.numpy(), "list": lambda v: v.tolist(),
    "whole": lambda v: v.long(), "complex": lambda v: v + 0j, "nan": lambda v: v * torch.nan,
    "inf": lambda v: v + torch.inf, "meta": lambda v: v.to("meta"), None: lambda v: v,
}}

class DrilledReward:
    card = {{"kind": "reward", "title": "Drilled", "direction": "higher", "differentiable": False, "scope": "image"}}

    def __init__(self, device): ...

    def score(self, request):
        values = request.images.std(dim=(1, 2, 3))
        return api.Scores(VALUES[wrong("reward")](values), torch.ones_like(values, dtype=torch.bool))

@ab.reward(name="drilled_function")
def drilled_function(images):
    return VALUES[wrong("function")](images.mean(dim=(1, 2, 3)))

class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()
    @staticmethod
    def backward(ctx, gradient):
        raise ZeroDivisionError("backwards")

class Drilled(ArGrpo):
    card = {{**Registry.default().method("ar-grpo").model_dump(exclude={{"target"}}), "kind": "method", "name": "drilled"}}

    def collect(self, batch, step):
        how, made = wrong("method"), super().collect(batch, step)
        self.how = how or ""
        if how == "miscounted":
            return api.Collected(made.experience, images=0)
        if how == "no-number":
            return api.Collected(made.experience, metrics={{"reward": torch.zeros(2)}}, images=len(batch))
        return {{"none": None, "tuple": (made, 1)}}.get(how, made)

    def loss(self, experience):
        value = super().loss(experience).value
        if self.how == "loss-no-number":
            return api.Loss(value, {{"kl": "small"}})
        return {{
            "loss-tensor": lambda: value, "loss-vector": lambda: api.Loss(value.expand(2)),
            "loss-nan": lambda: api.Loss(value * torch.nan), "loss-loose": lambda: api.Loss(value.detach()),
            "loss-meta": lambda: api.Loss(value.to("meta")), "loss-backward": lambda: api.Loss(BadBackward.apply(value)),
        }}.get(self.how, lambda: api.Loss(value))()

class Grey:
    card = {{"kind": "evaluator", "name": "grey", "title": "Grey", "summary": "Grey.", "metrics": {{"grey": {{
        "title": "Grey", "direction": "higher", "digits": 2, "column": "grey", "doc": "Mean."}}}}}}
    identity = "grey 1"

    def __init__(self, card, *, options, assets, device): ...

    def measure(self, batch):
        grey, how = batch.images.double().mean(dim=(1, 2, 3)), wrong("evaluator")
        self.how = how or ""
        rows = {{
            "none": lambda: None, "list": lambda: [1, 2], "short": lambda: {{"grey": grey.numpy()[1:]}},
            "scalar": lambda: {{"grey": 1.0}}, "nan": lambda: {{"grey": grey.numpy() * np.nan}},
            "objects": lambda: {{"grey": np.array([None] * len(batch))}}, "tensor": lambda: {{"grey": grey.requires_grad_()}},
            "ragged": lambda: {{"grey": [[1.0] * (n % 3 + 1) for n in range(len(batch))]}}, "unsaid": lambda: {{}},
        }}
        return rows.get(how, lambda: {{"grey": grey.numpy()}})()

    def score(self, samples, reference):
        fault = FAULT or os.environ.get("DRILLED", "")
        if fault.startswith("evaluator score-error"):
            return 1 / 0
        if fault.startswith("evaluator score-leave"):
            raise SystemExit(0)
        mean = float(samples.column("grey").mean())
        said = [api.Metric("grey", mean, len(samples), interval=(mean - 1, mean + 1))]
        return {{
            "score-none": None, "score-number": mean, "score-other-name": [api.Metric("gray", mean, 1)],
            "score-no-number": [api.Metric("grey", "high", 1)], "score-twice": said * 2,
            "score-interval": [api.Metric("grey", mean, 1, interval=(1.0,))],
        }}.get(fault.split(" ")[1] if fault.startswith("evaluator") else "", said)
'''

PROTOCOL = """
title = "Grey"
summary = "Grey."
version = 1
condition = "class"
image_size = 8
samples = 60
seeds = [0]
labels = "balanced"
precision = "fp32"
batch = 20
evaluators = ["grey"]
rank_by = "grey"
settings = { t1 = { title = "T=1" } }
"""


def write(folder: Path, fault: str = "") -> None:
    """The plug-in file, with a fault of its own or sound."""
    (folder / "drilled.py").write_text(SOURCE.format(fault=fault))


class Plugin(Drill):
    """A reward, a method and an evaluator of one file."""

    def __init__(self, root: Path, seed: int) -> None:
        place = root / "cards"
        (place / "protocols").mkdir(parents=True)
        (place / "protocols" / "grey8.toml").write_text(PROTOCOL)
        write(place)
        self.place, self.turns = place, 0
        self.arguments = [
            "run", "--method", "drilled", "--model", "llamagen-tiny", *SMALL, "--protocol", "grey8",
            "--plugin", str(place / "drilled.py"), "--plugin", str(place),
            "--set", "method.rewards=drilled-reward@1, drilled_function@1", "--set", "train.failed_rewards=0",
        ]  # fmt: skip
        super().__init__(root, seed)

    def plugin(self) -> None:
        """One part goes wrong in one way."""
        self.turns += 1
        part = self.draw.choice(list(NAMES))
        how = self.draw.choice(WRONG["reward" if part == "function" else part])
        calls = 1 if part == "evaluator" else 4  # at least; what is known of the base comes from the cache
        fault = f"{part} {how} {self.draw.randrange(calls)}"
        with self.trial() as folder:
            out, mended = folder / "run", folder / "run"
            try:
                if self.turns % 2:
                    os.environ["DRILLED"] = fault
                else:
                    write(self.place, fault)
                    mended = folder / "again"
                code, errors = in_process(*self.arguments, "--out", str(out))
                if code != 1:
                    raise Lost(f"{fault}: exit status {code}\n{errors[-1000:]}")
                check_words(errors, NAMES[part])
                check_failed(out)
            except Lost as error:
                raise Lost(f"{fault}: {error}") from error
            finally:
                os.environ.pop("DRILLED", None)
                write(self.place)
            self.finish(mended)
