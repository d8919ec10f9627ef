"""What every evaluator owes, whatever its name: order, batches and repetition do not change a score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from alignbench import randomness
from alignbench.api import Evaluator
from alignbench.registry.catalogue import Catalogue, import_target
from alignbench.registry.schema import EvaluatorCard

CATALOGUE = Catalogue.default()
NAMES = CATALOGUE.names("evaluators")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Images:
    """An image set in memory, given in batches of one size."""

    digest: str
    pixels: Tensor
    classes: Tensor
    batch: int = 64

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self) -> Iterator[Tensor]:
        yield from self.pixels.split(self.batch)

    def labels(self) -> Tensor:
        return self.classes


def image_set(name: str, seed: int, count: int = 200) -> Images:
    """Blobs whose brightness and place vary: enough spread for every covariance."""
    numbers = randomness.generator(seed, "evaluator-contract")
    noise = numbers.integers(0, 256, (count, 3, 8, 8))
    ramp = numbers.random((count, 1, 1, 1)) * numbers.random((count, 1, 8, 8))
    pixels = torch.from_numpy((noise * ramp).astype("uint8"))
    return Images(f"sha256:{name}{seed}", pixels, torch.from_numpy(numbers.integers(0, 10, count)))


def built(name: str) -> tuple[EvaluatorCard, Evaluator]:
    card = CATALOGUE.evaluator(name)
    options = {key: option.default for key, option in card.options.items()}
    evaluator: Evaluator = import_target(card.target)(card, options, CPU)
    return card, evaluator


def scores(evaluator: Evaluator, samples: Images, reference: Images) -> dict[str, float]:
    return {metric.name: metric.value for metric in evaluator.score(samples, reference)}


def test_there_is_an_evaluator() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_card_names_exactly_what_is_measured(name: str) -> None:
    card, evaluator = built(name)
    metrics = evaluator.score(image_set("s", 1), image_set("r", 2))
    assert {metric.name for metric in metrics} == set(card.metrics)
    assert all(metric.n == 200 for metric in metrics)
    assert card.title and card.summary
    for fact in card.metrics.values():
        assert fact.title and fact.doc and fact.digits > 0


@pytest.mark.parametrize("name", NAMES)
def test_batches_and_repetition_change_nothing(name: str) -> None:
    _, evaluator = built(name)
    samples, reference = image_set("s", 1), image_set("r", 2)
    first = scores(evaluator, samples, reference)
    assert scores(evaluator, samples, reference) == first
    ragged = Images("sha256:ragged", samples.pixels, samples.classes, batch=7)
    assert scores(built(name)[1], ragged, reference) == pytest.approx(first, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_images_changes_no_distribution_metric(name: str) -> None:
    """Except by the shuffle that a score over splits makes itself, which is far below its spread."""
    _, evaluator = built(name)
    samples, reference = image_set("s", 1), image_set("r", 2)
    order = torch.from_numpy(randomness.permutation(0, "order", 0, len(samples)))
    turned = Images("sha256:turned", samples.pixels[order], samples.classes[order])
    assert scores(evaluator, turned, reference) == pytest.approx(
        scores(evaluator, samples, reference), rel=0.05, abs=1e-6
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_set_against_itself_is_perfect_and_another_is_worse(name: str) -> None:
    card, evaluator = built(name)
    reference, other = image_set("r", 2), image_set("s", 3)
    black = Images("sha256:black", torch.zeros_like(other.pixels), other.classes)
    same, worst = scores(evaluator, reference, reference), scores(evaluator, black, reference)
    compared = [metric for metric, fact in card.metrics.items() if same[metric] != worst[metric]]
    distances = [metric for metric in compared if card.metrics[metric].direction == "lower"]
    assert distances, "no metric tells a black set from real images"
    for metric in distances:
        assert same[metric] < 1e-4 < worst[metric], metric
