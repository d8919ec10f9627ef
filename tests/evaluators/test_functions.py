"""A plain function as an evaluator: what it is given, what comes of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import alignbench as ab
from alignbench.api import PROMPT, ImageBatch, Prompt
from alignbench.registry.plugins import load_registry

WORDS = ("Did you mean distribution-digits", "no card has this name", "needs originals, which")


@ab.metric(direction="lower", digits=2, options={"power": {"default": 2.0, "doc": "Exponent."}})
def edge_strength(images: Tensor, power: float) -> Tensor:
    """Mean difference of neighbouring pixels."""
    return ((images[..., 1:] - images[..., :-1]).abs() ** power).mean(dim=(1, 2, 3))


@ab.metric
def wordy(images: Tensor, prompts: list[str], labels: Tensor | None) -> Tensor:
    assert labels is None
    return torch.tensor([float(len(prompt)) for prompt in prompts])


def built(function: Any) -> Any:
    registry = load_registry([function])
    (name,) = registry.files[0].cards["evaluators"]
    card = registry.evaluator(name)
    options = {key: option.default for key, option in card.options.items()}
    return card, function(card, options=options, assets={}, device=torch.device("cpu"))


class Measured(dict[str, np.ndarray]):
    digest = ""

    def column(self, name: str) -> np.ndarray:
        return self[name]


def test_the_mean_and_its_interval_are_those_of_the_function() -> None:
    card, evaluator = built(edge_strength)
    fact = card.metrics["edge-strength"]
    assert (fact.direction, fact.digits, fact.column, fact.per) == ("lower", 2, "edge-strength", "image")
    images = torch.randint(256, (200, 3, 4, 4), generator=torch.manual_seed(0), dtype=torch.uint8)
    rows = evaluator.measure(ImageBatch(ids=range(200), images=images))
    scaled = images.numpy() / 127.5 - 1
    expected = (np.diff(scaled, axis=3) ** 2).mean(axis=(1, 2, 3))
    assert np.allclose(rows["edge-strength"], expected, atol=1e-6)
    (found,) = evaluator.score(Measured(rows), None)
    assert found.value == pytest.approx(expected.mean(), abs=1e-6) and found.interval is not None
    half = 1.96 * expected.std(ddof=1) / 200**0.5  # what the bootstrap comes to
    assert found.interval == pytest.approx((found.value - half, found.value + half), abs=0.15 * half)


def test_one_that_reads_prompts_counts_prompts_not_images() -> None:
    card, evaluator = built(wordy)
    assert card.needs == ["prompts"] and card.metrics["wordy"].per == "prompt"
    images, prompts = torch.zeros(4, 3, 2, 2, dtype=torch.uint8), [Prompt("a"), Prompt("bcd")] * 2
    rows = evaluator.measure(ImageBatch(ids=range(4), images=images, prompts=prompts))
    assert rows["wordy"].tolist() == [1, 3, 1, 3]
    (found,) = evaluator.score(Measured({**rows, PROMPT: np.array(["0", "1"] * 2)}), None)
    assert found.value == 2 and found.interval == (1.0, 3.0)  # two prompts, however many images


def test_a_function_that_gives_no_number_for_an_image_is_named() -> None:
    _, evaluator = built(ab.metric(lambda_of(lambda images: images.mean())))
    with pytest.raises(ValueError, match="odd gave no finite number for each of 2 images"):
        evaluator.measure(ImageBatch(ids=range(2), images=torch.zeros(2, 3, 2, 2, dtype=torch.uint8)))


def lambda_of(function: Any) -> Any:
    def odd(images: Tensor) -> Tensor:
        return function(images)  # type: ignore[no-any-return]

    return odd


def test_it_scores_beside_the_evaluators_of_a_protocol(tmp_path: Path) -> None:
    options = ["protocol.samples=50", "protocol.seeds=0", "protocol.settings=t1"]
    record = ab.evaluate(
        model="llamagen-tiny",
        plugins=[edge_strength],
        options=[*options, "protocol.evaluators=edge-strength"],
        out=tmp_path / "run",
    )
    assert [result.evaluator for result in record.results] == ["distribution-digits", "edge-strength"]
    assert "edge strength ↓" in ab.board([record], plugins=[edge_strength]).markdown()
    found = [
        ab.plan(None, "llamagen-tiny", options=[f"protocol.evaluators={name}"]).problems
        for name in ("edge-strength", "distribution-digit", "reconstruction-pixels")
    ]
    assert [next(text for text in WORDS if text in problem.what) for (problem,) in found] == [
        "no card has this name",
        "Did you mean distribution-digits",
        "needs originals, which",
    ]
