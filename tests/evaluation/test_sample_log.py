"""The log of one image set: whole or absent, the same from any number of processes, with honest means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignbench.api import ImageBatch, Metric, Prompt, Rows
from alignbench.errors import RunFailed
from alignbench.evaluation.extremes import extremes
from alignbench.evaluation.features import FeatureStore, measure, units_of
from alignbench.evaluation.sample_log import NOTES, ImageNotes, SampleLog, columns_of, read_log
from alignbench.progress import Progress, Stage
from alignbench.registry.protocol import EvaluatorCard
from tests.helpers.toys import alone

STAGE = Stage(Progress(quiet=True), "measure", total=99, done=0)
TEXTS = ['a\n"line"', "</script>\0", "\u2028\u202e", "\ud800 alone", "naïve 図", ""]
CARD = EvaluatorCard.model_validate(
    {
        "target": "a:b",
        "title": "Levels",
        "metrics": {"level": {"title": "Level", "direction": "lower", "digits": 1, "column": "mean"}},
        "keep": ["word"],
        "columns": {"word": {"title": "Word"}},
    }
)


class Images:
    """Six images in shards of four, image i of level 10·i, each with a prompt."""

    identity = "six"

    def __len__(self) -> int:
        return 6

    def shards(self) -> list[range]:
        return [range(0, 4), range(4, 6)]

    def load(self, number: int) -> ImageBatch:
        ids = self.shards()[number]
        pixels = torch.stack([torch.full((3, 2, 2), 10 * i, dtype=torch.uint8) for i in ids])
        prompts = [Prompt(TEXTS[i], tag=TEXTS[-1 - i]) for i in ids]
        return ImageBatch(ids=ids, images=pixels, prompts=prompts)


class Levels:
    identity = "levels"

    def measure(self, batch: ImageBatch) -> Rows:
        mean = batch.images.double().mean(dim=(1, 2, 3)).numpy()
        return {"mean": mean, "word": np.array([f"<{x:g}>" for x in mean]), "other": mean}

    def score(self, *_: object) -> list[Metric]:
        raise NotImplementedError


class Halves:
    """A reward that has no score of every third image."""

    identity = "halves"
    facts: Mapping[str, Mapping[str, Any]] = {"half(a=1)": {"title": "Half", "direction": "higher"}}
    left_out: Mapping[str, str] = {}

    def measure(self, batch: ImageBatch) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        ids = np.array(batch.ids)
        return {"half(a=1)": (np.where(ids % 3 == 2, 0, 5.0 * ids), ids % 3 != 2)}


def stores_in(folder: Path) -> dict[str, FeatureStore]:
    return {name: FeatureStore(folder / "rows" / name, name) for name in ("levels", NOTES)}


def log_in(folder: Path, ranks: int = 1) -> tuple[SampleLog, dict[str, FeatureStore]]:
    """Measure with some processes; return the log, which is not written yet, and its rows."""
    notes, stores = ImageNotes({"run": "r"}, (), Halves()), stores_in(folder)
    for rank in range(ranks):
        evaluators: Any = {"levels": Levels(), NOTES: notes}
        share = units_of(Images(), evaluators, stores)[rank::ranks]
        measure(share, alone(len(share)), STAGE)
    header = {"subject": "base", "setting": {"name": "t1"}, "seed": 3, "images": 6, "scores": {}}
    header |= {"pixels": [stores[NOTES].rows(2).digest], "rewards": dict(Halves.facts)}
    columns = columns_of({"levels": CARD})
    header["scores"] = {name: meaning for name, (_, _, meaning) in columns.items()}
    return SampleLog(folder / "log.jsonl", header, notes, columns), stores


def write(log: SampleLog, stores: Mapping[str, FeatureStore], level: float = 25.0) -> list[dict[str, Any]]:
    log.write(stores, Images().shards(), {"level": level, "elsewhere": 1.0})
    return list(read_log(log.path)[1])


def test_a_line_says_everything_of_an_image(tmp_path: Path) -> None:
    log, stores = log_in(tmp_path)
    assert not log.is_written()
    lines = write(log, stores)
    assert log.is_written()
    raw = log.path.read_bytes()
    assert raw.isascii() and raw.count(b"\n") == 7 and b"NaN" not in raw
    for i, line in enumerate(lines):
        assert line == {
            "id": i, "subject": "base", "setting": "t1", "seed": 3, "prompt": TEXTS[i], "tag": TEXTS[-1 - i],
            "scores": {"level": 10.0 * i, "levels.word": f"<{10 * i}>"},
            "rewards": {"half(a=1)": None if i % 3 == 2 else 5.0 * i},
        }  # fmt: skip


def test_processes_and_reduced_rows_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for ranks in (1, 2, 3):
        log, stores = log_in(tmp_path / str(ranks), ranks)
        if ranks == 3:  # as after scoring: other columns are gone
            stores["levels"].reduce(2, CARD.kept)
            stores["levels"] = replace(stores["levels"], reduced=True)
        write(log, stores)
        written.append(log.path.read_bytes())
    assert written[0] == written[1] == written[2]


def test_a_log_is_whole_or_absent_and_of_the_records_images(tmp_path: Path) -> None:
    log, stores = log_in(tmp_path)
    with pytest.raises(RunFailed, match="the mean of level is 25, recorded was 26"):
        write(log, stores, level=26)
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
    others = replace(log, header={**log.header, "pixels": ["sha256:0"]})
    with pytest.raises(RunFailed, match="drawn anew and differ"):
        write(others, stores)
    write(log, stores, level=2500)  # the metric in per cent
    assert not others.is_written()
    log.path.unlink()
    stores["levels"].path(1).unlink()
    with pytest.raises(RunFailed, match="shard-00001"):
        write(log, stores)
    assert not log.path.exists()


def test_the_worst_and_the_best_are_pythons(tmp_path: Path) -> None:
    """Against sorting in plain Python, over two files, with ties and without scores that are missing."""
    paths, places = [], []
    numbers = np.random.default_rng(0).integers(0, 8, (2, 50))
    for file, values in enumerate(numbers.tolist()):
        header = {"images": 50, "scores": {"s": {"direction": "lower"}, "word": {}}, "rewards": {}}
        lines = [
            {"id": i, "scores": {"s": None if value == 7 else value, "word": "x"}}
            for i, value in enumerate(values)
        ]
        paths.append(tmp_path / f"{file}.jsonl")
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in [header, *lines]))
        places += [(value, file, i) for i, value in enumerate(values) if value != 7]
    for count in (3, 20, 1000):
        found = extremes(paths, count)
        assert list(found.found) == ["s"]
        one = found.found["s"]
        best = sorted(places)[:count]
        worst = sorted(places, key=lambda x: (-x[0], *x[1:]))[:count]
        assert one.best == [x[1:] for x in best] and one.worst == [x[1:] for x in worst]
        assert one.tied == tuple(
            sum(x[0] == end[-1][0] for x in places) - sum(x[0] == end[-1][0] for x in end)
            for end in (worst, best)
        )
        assert set(found.lines) == {*one.worst, *one.best}
