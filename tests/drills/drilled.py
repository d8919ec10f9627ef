# ruff: noqa: RUF012
"""The plug-in of the drill: sound, until `FAULT` or the variable DRILLED says `part way calls`."""

import asyncio
import collections
import os
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import alignbench as ab
from alignbench import api
from alignbench.methods.ar_grpo import ArGrpo
from alignbench.registry.lookup import Registry

FAULT = ""
SEEN = collections.Counter[tuple[str, str]]()


class Speechless(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def wrong(part: str) -> str | None:
    """How `part` is to be wrong now; None: not at all."""
    fault = FAULT or os.environ.get("DRILLED", "")
    SEEN[fault, part] += 1
    broken, _, rest = fault.partition(" ")
    how, _, after = rest.partition(" ")
    if broken != part or SEEN[fault, part] <= int(after):
        return None
    if how.endswith("error"):
        raise ZeroDivisionError("division\nby [red]zero[/red]\x1b[31m")
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


VALUES: dict[str | None, Callable[[Tensor], Any]] = {
    "column": lambda v: v[:, None],
    "short": lambda v: v[1:],
    "long": lambda v: torch.cat([v, v]),
    "scalar": lambda v: v.mean(),
    "none": lambda v: None,
    "array": lambda v: v.numpy(),
    "list": lambda v: v.tolist(),
    "whole": lambda v: v.long(),
    "complex": lambda v: v + 0j,
    "nan": lambda v: v * torch.nan,
    "inf": lambda v: v + torch.inf,
    "meta": lambda v: v.to("meta"),
    None: lambda v: v,
}


class DrilledReward:
    card = {
        "kind": "reward",
        "title": "Drilled",
        "direction": "higher",
        "differentiable": False,
        "scope": "image",
    }

    def __init__(self, device: torch.device) -> None: ...

    def score(self, request: api.ScoreRequest) -> api.Scores:
        values = request.images.std(dim=(1, 2, 3))
        return api.Scores(VALUES[wrong("reward")](values), torch.ones_like(values, dtype=torch.bool))


@cast(Callable[..., Any], ab.reward(name="drilled_function"))
def drilled_function(images: Tensor) -> Any:
    return VALUES[wrong("function")](images.mean(dim=(1, 2, 3)))


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise ZeroDivisionError("backwards")


class Drilled(ArGrpo):
    card = {
        **Registry.default().method("ar-grpo").model_dump(exclude={"target"}),
        "kind": "method",
        "name": "drilled",
    }

    def collect(self, batch: api.Batch, step: int) -> Any:
        how, made = wrong("method"), super().collect(batch, step)
        self.how = how or ""
        if how == "miscounted":
            return api.Collected(made.experience, images=0)
        if how == "no-number":
            return api.Collected(made.experience, metrics={"reward": torch.zeros(2)}, images=len(batch))
        return {"none": None, "tuple": (made, 1)}.get(how or "", made)

    def loss(self, experience: object) -> Any:
        value = super().loss(experience).value
        if self.how == "loss-no-number":
            return api.Loss(value, {"kl": cast(Any, "small")})
        return {
            "loss-tensor": lambda: value,
            "loss-vector": lambda: api.Loss(value.expand(2)),
            "loss-nan": lambda: api.Loss(value * torch.nan),
            "loss-loose": lambda: api.Loss(value.detach()),
            "loss-meta": lambda: api.Loss(value.to("meta")),
            "loss-backward": lambda: api.Loss(BadBackward.apply(value)),
        }.get(self.how, lambda: api.Loss(value))()


class Grey:
    card = {
        "kind": "evaluator",
        "name": "grey",
        "title": "Grey",
        "summary": "Grey.",
        "metrics": {
            "grey": {"title": "Grey", "direction": "higher", "digits": 2, "column": "grey", "doc": "Mean."}
        },
    }
    identity = "grey 1"

    def __init__(self, card: object, *, options: object, assets: object, device: torch.device) -> None: ...

    def measure(self, batch: api.ImageBatch) -> Any:
        grey, how = batch.images.double().mean(dim=(1, 2, 3)), wrong("evaluator")
        rows: dict[str | None, Callable[[], object]] = {
            "none": lambda: None,
            "list": lambda: [1, 2],
            "short": lambda: {"grey": grey.numpy()[1:]},
            "scalar": lambda: {"grey": 1.0},
            "nan": lambda: {"grey": grey.numpy() * np.nan},
            "objects": lambda: {"grey": np.array([None] * len(batch))},
            "tensor": lambda: {"grey": grey.requires_grad_()},
            "ragged": lambda: {"grey": [[1.0] * (n % 3 + 1) for n in range(len(batch))]},
            "unsaid": lambda: {},
        }
        return rows.get(how, lambda: {"grey": grey.numpy()})()

    def score(self, samples: api.Measured, reference: api.Reference | None) -> Any:
        fault = FAULT or os.environ.get("DRILLED", "")
        if fault.startswith("evaluator score-error"):
            return 1 / 0
        if fault.startswith("evaluator score-leave"):
            raise SystemExit(0)
        mean = float(samples.column("grey").mean())
        said = [api.Metric("grey", mean, len(samples), interval=(mean - 1, mean + 1))]
        return {
            "score-none": None,
            "score-number": mean,
            "score-other-name": [api.Metric("gray", mean, 1)],
            "score-no-number": [api.Metric("grey", cast(Any, "high"), 1)],
            "score-twice": said * 2,
            "score-interval": [api.Metric("grey", mean, 1, interval=cast(Any, (1.0,)))],
        }.get(fault.split(" ")[1] if fault.startswith("evaluator") else "", said)
