"""Rows of image sets: measured once whoever asks, never mixed up, the same however they were gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from alignbench.api import PROMPT, ImageBatch, Metric, Prompt, Rows
from alignbench.errors import RunFailed
from alignbench.evaluation.features import FeatureStore, measure, prompt_key, units_of
from alignbench.progress import Progress, Stage
from tests.helpers.toys import alone

STAGE = Stage(Progress(quiet=True), "measure", total=99, done=0)


@dataclass
class Images:
    """Ten images in shards of four, counting how often each is read."""

    identity: str = "ten"
    reads: list[int] = field(default_factory=list)
    prompts: Sequence[Prompt] = ()

    def __len__(self) -> int:
        return 10

    def shards(self) -> list[range]:
        return [range(0, 4), range(4, 8), range(8, 10)]

    def load(self, number: int) -> ImageBatch:
        self.reads.append(number)
        ids = self.shards()[number]
        pixels = torch.stack([torch.full((3, 2, 2), i, dtype=torch.uint8) for i in ids])
        return ImageBatch(ids=ids, images=pixels, prompts=self.prompts[ids.start : ids.stop])


@dataclass
class Mean:
    """Remembers each image's mean level."""

    identity: str = "mean"
    fails_at: int = 99

    def measure(self, batch: ImageBatch) -> Rows:
        if self.fails_at in batch.ids:
            raise KeyboardInterrupt
        return {"level": batch.images.double().mean(dim=(1, 2, 3)).numpy()}

    def score(self, samples: object, reference: object) -> list[Metric]:
        raise NotImplementedError


def store(folder: Path, key: str = "key") -> FeatureStore:
    return FeatureStore(folder / "mean", key)


def run(images: Images, evaluator: Mean, folder: Path) -> FeatureStore:
    rows = store(folder)
    units = units_of(images, {"mean": evaluator}, {"mean": rows})
    measure(units, alone(len(units)), STAGE)
    return rows


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path: Path) -> None:
    images = Images()
    with pytest.raises(KeyboardInterrupt):
        run(images, Mean(fails_at=8), tmp_path)
    assert images.reads == [0, 1, 2]
    images.reads.clear()
    rows = run(images, Mean(), tmp_path).rows(3)
    assert images.reads == [2] and len(rows) == 10
    assert rows.column("level").tolist() == list(range(10))
    assert [len(piece) for piece in rows.shards("level")] == [4, 4, 2]
    whole = run(Images(), Mean(), tmp_path / "whole").rows(3)
    assert rows.digest == whole.digest and (rows.column("level") == whole.column("level")).all()


def test_each_shard_is_decoded_once_for_all_evaluators(tmp_path: Path) -> None:
    images = Images()
    stores = {name: FeatureStore(tmp_path / name, name) for name in ("a", "b", "c")}
    measure(units_of(images, {name: Mean() for name in stores}, stores), alone(3), STAGE)
    assert images.reads == [0, 1, 2]
    assert all(rows.has(number) for rows in stores.values() for number in range(3))


@pytest.mark.parametrize("damage", ["other key", "torn", "text", "gone"])
def test_rows_of_something_else_or_damaged_ones_are_made_again(tmp_path: Path, damage: str) -> None:
    rows = run(Images(), Mean(), tmp_path)
    path = rows.path(1)
    if damage == "other key":
        content = FeatureStore(tmp_path / "other", "another")
        pixels = np.zeros((4, 32), np.uint8)
        content.write(1, {"level": np.zeros(4)}, pixels=pixels, load_seconds=0, seconds=0)
        path.write_bytes(content.path(1).read_bytes())
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "text":
        path.write_text("no rows")
    else:
        path.unlink()
    assert not rows.has(1)
    with pytest.raises(RunFailed, match="shard-00001"):
        rows.rows(3)
    images = Images()
    assert run(images, Mean(), tmp_path).rows(3).column("level").tolist() == list(range(10))
    assert images.reads == [1]


def test_reduced_rows_hold_their_columns_and_do_not_count_as_measured(tmp_path: Path) -> None:
    images = Images(prompts=[Prompt(f"picture {i // 2}") for i in range(10)])
    rows = run(images, Mean(), tmp_path)
    rows.reduce(3, ["level"])
    with np.load(rows.path(0)) as file:
        assert file["level"].tolist() == [0, 1, 2, 3]
        assert file[PROMPT][0] == file[PROMPT][1] != file[PROMPT][2]
    assert not rows.has(0)
    run(Images(), Mean(), tmp_path).reduce(3, [])
    assert not rows.path(0).exists()


def test_an_evaluator_that_loses_rows_is_named(tmp_path: Path) -> None:
    class Lossy(Mean):
        def measure(self, batch: ImageBatch) -> Rows:
            return {"level": np.zeros(len(batch) - 1)}

    with pytest.raises(RunFailed, match="'mean' failed: ValueError: column level is \\[3\\] for 4 images"):
        run(Images(), Lossy(), tmp_path)


def test_an_evaluator_that_fails_or_gives_no_numbers_is_named(tmp_path: Path) -> None:
    class Broken(Mean):
        def measure(self, batch: ImageBatch) -> Rows:
            raise ZeroDivisionError("by zero")

    class Nan(Mean):
        def measure(self, batch: ImageBatch) -> Rows:
            return {"level": np.full(len(batch), np.nan)}

    with pytest.raises(RunFailed, match="evaluator 'mean' failed: ZeroDivisionError: by zero"):
        run(Images(), Broken(), tmp_path)
    with pytest.raises(
        RunFailed, match="'mean' failed: ValueError: column level holds values that are not numbers"
    ):
        run(Images(), Nan(), tmp_path)


def test_equal_prompts_have_equal_keys() -> None:
    assert prompt_key(Prompt("a cat", "x")) == prompt_key(Prompt("a cat", "x", {"n": 1}))
    assert len({prompt_key(Prompt(text, tag)) for text in "ab" for tag in "xy"}) == 4
