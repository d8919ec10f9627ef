"""GenEval's rules as a reward: the evaluator's own detector, colours and verdicts on images in training."""

from __future__ import annotations

from typing import Any, Literal

import torch

from alignbench import api
from alignbench.evaluators.geneval import colours, mask2former
from alignbench.evaluators.geneval.evaluator import GenEval
from alignbench.hub.locate import locate_asset
from alignbench.hub.verify import verify_asset
from alignbench.registry.lookup import Registry

Form = Literal["share", "verdict"]


class GenEvalReward:
    """The share of a prompt's clauses that hold, or 1 where all do, else 0; both in [0, 1]."""

    def __init__(self, detector: Any, classifier: Any, form: Form) -> None:
        """Take a `detectors.Detector` and a `detectors.Colours`."""
        self._rules, self._form = GenEval(detector, classifier, prefix=""), form

    def score(self, request: api.ScoreRequest) -> api.Scores:
        """The request must have entries of a GenEval prompt file as metadata; UserError: other entries."""
        entries = request.metadata["prompt"]
        # Rounded to the nearest byte, as the protocol's images are.
        pixels = (request.images * 255 + 0.5).clamp(0, 255).to(torch.uint8).cpu()
        prompts = [api.Prompt(str(entry.get("prompt", "")), metadata=entry) for entry in entries]
        rows = self._rules.measure(api.ImageBatch(ids=range(len(pixels)), images=pixels, prompts=prompts))
        shares = [
            1 - len(reason.splitlines()) / (len(entry["include"]) + len(entry.get("exclude", ())))
            for reason, entry in zip(rows["reason"].tolist(), entries, strict=True)
        ]
        values = torch.tensor(shares if self._form == "share" else rows["correct"], dtype=torch.float32)
        values = values.to(request.images.device)
        return api.Scores(values, torch.ones_like(values, dtype=torch.bool))


def build(device: torch.device, *, form: Form, clip: str) -> GenEvalReward:
    """Load the official detector and colour network from the assets of the evaluator.

    Raises:
        UserError: a file is missing or is not what it should be.
    """
    registry, names = Registry.default(), (mask2former.OFFICIAL, colours.ASSET)
    files = {name: verify_asset(locate_asset(name, registry.asset(name))) for name in names}
    common: dict[str, Any] = {"options": {"batch": 1, "clip": clip}, "assets": files, "device": device}
    return GenEvalReward(mask2former.build_official(**common), colours.build(**common), form)
