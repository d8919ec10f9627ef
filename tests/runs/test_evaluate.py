"""`alignbench evaluate`: models, given images, tokenizers and finished runs, interrupted and repeated."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignbench.evaluation import features
from alignbench.evaluators.digits import DigitsDistribution
from tests.helpers.command import alignbench

SMALL = ["--set", "protocol.samples=600", "--set", "protocol.seeds=0", "--set", "protocol.settings=t1"]


def record(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return loaded


def samples_digest(folder: Path) -> str:
    (score,) = (folder / "metrics").glob("*.json")
    return str(json.loads(score.read_text())["samples_digest"])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base run of the embedded model with its images in both forms."""
    folder = tmp_path_factory.mktemp("evaluated") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNBENCH_CACHE", str(folder.parent / "cache"))
        arguments = ["evaluate", "--model", "llamagen-tiny", *SMALL, "--write-npz", "--write-png"]
        assert alignbench(*arguments, "--out", folder).returncode == 0
    return folder


def test_written_images_score_the_same_as_given_ones(evaluated: Path, tmp_path: Path) -> None:
    """The ADM file, the PNG folder and the model itself are one image set."""
    (result,) = record(evaluated)["results"]
    npz = evaluated / "images" / "base" / "t1-seed-0.npz"
    with np.load(npz) as file:
        assert file["arr_0"].shape == (600, 8, 8, 3) and file["arr_0"].dtype == np.uint8
    digests = []
    for number, place in enumerate((npz, npz.with_suffix(""))):
        out = tmp_path / str(number)
        samples = ["evaluate", "--samples", place, "--protocol", "digits8", "--name", "Copy 1"]
        assert alignbench(*samples, "--set", "protocol.samples=600", "--out", out).returncode == 0
        found = record(out)
        assert found["kind"] == "samples" and found["model"]["title"] == "Copy 1"
        (given,) = found["results"]
        assert given["protocol"] == result["protocol"] and given["reference"] == result["reference"]
        expected = dict(result["metrics"])
        if place.is_dir():  # class accuracy needs labels, which a flat folder does not carry
            del expected["class-accuracy"]
        assert {name: pytest.approx(values) for name, values in given["metrics"].items()} == expected
        digests.append(samples_digest(out))
    assert {*digests} == {samples_digest(evaluated)}


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    evaluated: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    measured: list[int] = []
    stop = [True]
    whole = DigitsDistribution.measure

    def counting(self: DigitsDistribution, batch: Any) -> Any:
        if stop[0] and len(batch) == 100:  # the last of two shards
            raise KeyboardInterrupt
        measured.append(batch.ids[0])
        return whole(self, batch)

    monkeypatch.setattr(DigitsDistribution, "measure", counting)
    npz = evaluated / "images" / "base" / "t1-seed-0.npz"
    arguments = ["evaluate", "--samples", npz, "--protocol", "digits8", "--set", "protocol.samples=600"]
    folder = tmp_path / "half"
    done = alignbench(*arguments, "--out", folder)
    assert done.returncode == 3 and "run the same command again" in done.stderr
    assert measured[-1:] == [0] and not (folder / "run.json").exists()
    stop[0] = False
    measured.clear()
    assert alignbench(*arguments, "--out", folder).returncode == 0
    assert measured == [500]
    assert alignbench(*arguments, "--out", tmp_path / "straight").returncode == 0
    results = [record(tmp_path / name)["results"][0] for name in ("half", "straight")]
    assert results[0]["metrics"] == results[1]["metrics"]
    measured.clear()
    assert alignbench(*arguments, "--out", folder).returncode == 0  # complete: nothing to do
    assert not measured


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_alike(number: int, evaluated: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """For given images and for a finished run as for a run."""

    def no_space(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(features, "write_atomic", no_space)
    run = shutil.copytree(evaluated, tmp_path / "run")
    samples = ["--samples", run / "images" / "base" / "t1-seed-0.npz", "--protocol", "digits8"]
    samples += ["--set", "protocol.samples=600", "--out", tmp_path / "samples"]
    for arguments, folder in ((samples, tmp_path / "samples"), (["--run", run, "--reconstruction"], run)):
        done = alignbench("evaluate", *arguments)
        assert done.returncode == 1
        assert f"{folder}: no space left → free some and run the same command again" in done.stderr
    assert record(run) == record(evaluated)


def test_a_finished_run_is_scored_under_another_protocol(evaluated: Path, tmp_path: Path) -> None:
    assert alignbench("evaluate", "--run", evaluated, "--reconstruction").returncode == 0
    first = record(evaluated)
    names = [(result["protocol"]["name"], result["evaluator"]) for result in first["results"]]
    assert ("digits8", "distribution-digits") in names
    assert ("digits8-reconstruction", "reconstruction-pixels") in names
    assert alignbench("evaluate", "--run", evaluated, "--reconstruction").returncode == 0
    assert record(evaluated) == first  # known already
    alone = tmp_path / "alone"
    model = ["--model", "llamagen-tiny", "--reconstruction"]
    assert alignbench("evaluate", *model, "--out", alone).returncode == 0
    ours = [r["metrics"] for r in first["results"] if r["protocol"]["name"] == "digits8-reconstruction"]
    assert [r["metrics"] for r in record(alone)["results"]] == ours


def test_settings_of_a_finished_run_are_read_as_everywhere(evaluated: Path) -> None:
    again = ["evaluate", "--run", evaluated, "--protocol", "digits8", "--set", "seeds=0"]
    assert alignbench(*again, "--set", "settings=t1", "--set", "samples=60").returncode == 0
    assert record(evaluated)["results"][-1]["n"] == 60
    done = alignbench(*again, "--set", "train.lr=1")
    assert done.returncode == 2
    assert "train.lr changes nothing here: the run is finished → leave it out" in done.stderr


def test_rows_of_a_later_protocol_are_compared_image_by_image(tmp_path: Path, monkeypatch: Any) -> None:
    """They lie apart from those of the run's own protocol."""
    for name in ("a", "b"):
        # Results that come from the cache shared between runs bring no rows.
        monkeypatch.setenv("ALIGNBENCH_CACHE", str(tmp_path / f"cache-{name}"))
        few = ["--model", "llamagen-tiny", *SMALL, "--set", "protocol.samples=60"]
        assert alignbench("evaluate", *few, "--out", tmp_path / name).returncode == 0
        assert alignbench("evaluate", "--run", tmp_path / name, "--reconstruction").returncode == 0
        assert list((tmp_path / name / "protocols").glob("*/rows/base/**/shard-*.npz"))
    done = alignbench("compare", tmp_path / "a", tmp_path / "b", "--metric", "rec-psnr")
    assert done.returncode == 0
    assert "paired images" in done.stdout and "difference not significant" in done.stdout


def test_rows_of_column_metrics_stay_and_others_go(evaluated: Path) -> None:
    (kept,) = (evaluated / "rows").rglob("distribution-digits/shard-00000.npz")
    with np.load(kept) as file:
        assert {*file.files} == {"correct", "recognised", "probability", "requested", features.META}


BOTH_FORMS = ["--write-npz", "--write-png"]


def test_the_official_layout_of_a_text_model_scores_the_same(tmp_path: Path) -> None:
    """Images written with prompts and verdicts, read back as somebody's samples: fewer than prompts."""
    few = ["--set", "protocol.samples=120", "--set", "protocol.seeds=3", "--set", "protocol.settings=t1"]
    few += ["--model", "shapes-tiny"]
    made = tmp_path / "made"
    assert alignbench("evaluate", *few, *BOTH_FORMS, "--out", made).returncode == 0
    folder = made / "images" / "base" / "t1-seed-3"
    listed = (folder / "results-geneval-shapes.jsonl").read_text().splitlines()
    verdicts = [json.loads(line) for line in listed]
    assert len(verdicts) == 120 and {line["correct"] for line in verdicts} == {True, False}
    assert all(line["reason"] for line in verdicts if not line["correct"])
    metadata = json.loads((folder / "00000" / "metadata.jsonl").read_text())
    assert metadata["prompt"] == verdicts[0]["prompt"]
    assert (folder / "00000" / "samples" / "0000.png").is_file()
    # Nobody's prompts but those of the folder: a protocol of 120 images on the same prompts file.
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(line["metadata"] + "\n" for line in verdicts))
    arguments = ["--samples", folder, "--protocol", "shapes", "--set", f"assets.shapes-prompts={prompts}"]
    assert alignbench("evaluate", *arguments, "--out", tmp_path / "given").returncode == 0
    (ours,), (theirs,) = record(made)["results"], record(tmp_path / "given")["results"]
    given = ["evaluate", "--protocol", "shapes", "--out", tmp_path / "first", "--samples"]
    for place in (folder, folder.with_suffix(".npz")):
        done = alignbench(*given, place)
        assert done.returncode == 2, "fewer images are another protocol: it has to be said"
        assert "--set protocol.samples=120, a protocol of that number" in done.stderr
        assert alignbench(*given, place, "--set", "protocol.samples=120").returncode == 0
        (first,) = record(tmp_path / "first")["results"]
        assert all(first[key] == ours[key] for key in ("n", "protocol", "metrics", "intervals"))
        shutil.rmtree(tmp_path / "first")
    shutil.rmtree(folder / "00007")
    for samples, told in (
        (120, f"0 images of {verdicts[7]['prompt']!r} where the protocol has 1 → give as many"),
        (119, f"{verdicts[-1]['prompt']!r} is not among the prompts of the protocol's 119 images"),
    ):
        done = alignbench(*given, folder, "--set", f"protocol.samples={samples}")
        assert done.returncode == 2 and told in done.stderr
    assert theirs["n"] == 120 and theirs["metrics"] == ours["metrics"]
    assert theirs["protocol"]["digest"] != ours["protocol"]["digest"]  # other prompts, other protocol
