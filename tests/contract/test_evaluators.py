"""What every evaluator owes, whatever its name: order, shards and repetition do not change a score.

Evaluators that read files from outside are held to the same in their own tests, on tiny files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignbench import randomness
from alignbench.api import Evaluator, ImageBatch, Prompt, Reference
from alignbench.evaluation.features import FeatureStore, StoredFeatures, measure, units_of
from alignbench.progress import Progress, Stage
from alignbench.registry.lookup import Registry, import_target
from alignbench.registry.protocol import EvaluatorCard
from tests.helpers.toys import alone

REGISTRY = Registry.default()
NAMES = [
    name
    for name in REGISTRY.names("evaluators")
    if not REGISTRY.evaluator(name).assets and "prompts" not in REGISTRY.evaluator(name).needs
]
COMPARING = [name for name in NAMES if "reference" in REGISTRY.evaluator(name).needs]
CPU = torch.device("cpu")
STAGE = Stage(Progress(quiet=True), "measure", total=99, done=0)


@dataclass
class Images:
    """An image set in memory, in shards of one size; its originals are the same images, a level off, and
    moving codes changes nothing."""

    identity: str
    pixels: Tensor
    classes: Tensor
    shard: int = 64
    prompts: tuple[Prompt, ...] = ()
    real: bool = False

    def __len__(self) -> int:
        return len(self.pixels)

    def shards(self) -> list[range]:
        return [range(at, min(at + self.shard, len(self))) for at in range(0, len(self), self.shard)]

    def load(self, number: int) -> ImageBatch:
        ids = self.shards()[number]
        rows = slice(ids.start, ids.stop)
        images = self.pixels[rows]
        perturbed = None if self.real else lambda share, near: images
        return ImageBatch(
            ids=ids, images=images, labels=self.classes[rows], originals=images ^ 1, perturbed=perturbed
        )


def image_set(name: str, seed: int, count: int = 200) -> Images:
    """Blobs whose brightness and place vary: enough spread for every covariance."""
    numbers = randomness.generator(seed, "evaluator-contract")
    noise = numbers.integers(0, 256, (count, 3, 8, 8))
    ramp = numbers.random((count, 1, 1, 1)) * numbers.random((count, 1, 8, 8))
    pixels = torch.from_numpy((noise * ramp).astype("uint8"))
    return Images(f"{name}{seed}", pixels, torch.from_numpy(numbers.integers(0, 10, count)))


def built(name: str) -> tuple[EvaluatorCard, Evaluator]:
    card = REGISTRY.evaluator(name)
    options = {key: option.default for key, option in card.options.items()}
    evaluator: Evaluator = import_target(card.target)(card, options=options, assets={}, device=CPU)
    return card, evaluator


def rows(evaluator: Evaluator, images: Images, folder: Path) -> StoredFeatures:
    store = FeatureStore(folder / images.identity, f"{images.identity}{images.shard}")
    units = units_of(images, {"it": evaluator}, {"it": store})
    measure(units, alone(len(units)), STAGE)
    return store.rows(len(images.shards()))


def scores(evaluator: Evaluator, samples: Images, reference: Images, folder: Path) -> dict[str, float]:
    real = replace(reference, identity=f"{reference.identity}, real", real=True)
    compared = Reference(digest="r", measured=rows(evaluator, real, folder))
    found = evaluator.score(rows(evaluator, samples, folder), compared)
    return {metric.name: metric.value for metric in found}


def test_there_is_an_evaluator() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_card_names_exactly_what_is_measured(name: str, tmp_path: Path) -> None:
    card, evaluator = built(name)
    found = scores(evaluator, image_set("s", 1), image_set("r", 2), tmp_path)
    assert set(found) == set(card.metrics)
    for fact in card.metrics.values():
        assert fact.title and fact.doc and fact.digits > 0
        if fact.column:
            assert len(rows(evaluator, image_set("s", 1), tmp_path).column(fact.column))


@pytest.mark.parametrize("name", NAMES)
def test_an_identity_tells_options_apart(name: str) -> None:
    card, evaluator = built(name)
    assert built(name)[1].identity == evaluator.identity
    for key, option in card.options.items():
        if isinstance(option.default, int) and not isinstance(option.default, bool) and key != "batch":
            options = {k: o.default for k, o in card.options.items()} | {key: option.default + 1}
            other = import_target(card.target)(card, options=options, assets={}, device=CPU)
            assert other.identity != evaluator.identity, key


@pytest.mark.parametrize("name", NAMES)
def test_shards_and_repetition_change_nothing(name: str, tmp_path: Path) -> None:
    _, evaluator = built(name)
    samples, reference = image_set("s", 1), image_set("r", 2)
    first = scores(evaluator, samples, reference, tmp_path)
    assert scores(built(name)[1], samples, reference, tmp_path / "again") == first
    ragged = scores(built(name)[1], replace(samples, shard=7), reference, tmp_path / "ragged")
    assert ragged == pytest.approx(first, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_images_changes_no_metric(name: str, tmp_path: Path) -> None:
    """Except by the shuffle that a score over splits makes itself, which is far below its spread."""
    _, evaluator = built(name)
    samples, reference = image_set("s", 1), image_set("r", 2)
    order = torch.from_numpy(randomness.permutation(0, "order", 0, len(samples)))
    turned = Images("turned", samples.pixels[order], samples.classes[order])
    assert scores(evaluator, turned, reference, tmp_path) == pytest.approx(
        scores(evaluator, samples, reference, tmp_path), rel=0.05, abs=1e-6
    )


@pytest.mark.parametrize("name", COMPARING)
def test_a_set_against_itself_is_perfect_and_another_is_worse(name: str, tmp_path: Path) -> None:
    card, evaluator = built(name)
    reference, other = image_set("r", 2), image_set("s", 3)
    black = Images("black", torch.zeros_like(other.pixels), other.classes)
    same = scores(evaluator, reference, reference, tmp_path)
    worst = scores(evaluator, black, reference, tmp_path)
    compared = [metric for metric, fact in card.metrics.items() if same[metric] != worst[metric]]
    distances = [metric for metric in compared if card.metrics[metric].direction == "lower"]
    assert distances, "no metric tells a black set from real images"
    for metric in distances:
        assert same[metric] < 1e-4 < worst[metric], metric
