"""The log of samples from the command line: what it says of every image, and that it changes nothing else."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import alignbench as ab
from alignbench.evaluators.digits import DigitsDistribution
from alignbench.registry.lookup import Registry
from alignbench.samples.generated import Sampler
from tests.helpers.command import alignbench
from tests.helpers.tiny_open_clip import save_folder

FEW = ["--set", "protocol.samples=60", "--set", "protocol.seeds=0,1", "--set", "protocol.settings=t1"]
REWARDS = '''
import alignbench as ab

@ab.reward
def brightness(images):
    """Mean level of an image."""
    return images.mean(dim=(1, 2, 3))

@ab.reward(direction="lower")
def contrast(images):
    """Spread of an image; images of class 3 have no score."""
    return images.std(dim=(1, 2, 3), unbiased=False)
'''


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    header, *lines = (json.loads(line, parse_constant=refuse) for line in path.read_bytes().splitlines())
    return header, lines


def require_the_records_means(folder: Path, logs: Path) -> int:
    """Compare every column that a metric is the mean of, in float64; return how many there were."""
    record = json.loads((folder / "run.json").read_text())
    facts, count = Registry.default(), 0
    for result in record["results"]:
        for metric, fact in facts.evaluator(result["evaluator"].split("@")[0]).metrics.items():
            if not fact.column or metric not in result["metrics"]:
                continue
            for seed, value in zip(result["seeds"], result["metrics"][metric], strict=True):
                name = f"{result['subject']}-{result['setting']['name']}-seed-{seed}.jsonl"
                if (logs / name).exists():
                    header, lines = read(logs / name)
                    assert header["protocol"]["digest"] == result["protocol"]["digest"]
                    assert [line["id"] for line in lines] == list(range(result["n"]))
                    column = [line["scores"][metric] for line in lines]
                    assert math.fsum(column) / len(column) == pytest.approx(value, rel=1e-12), (name, metric)
                    count += 1
    return count


@pytest.mark.parametrize(
    ("model", "protocol", "metrics"),
    [
        ("llamagen-tiny", "digits8", 1),
        pytest.param("llamagen-tiny", "digits8-validation", 1, marks=pytest.mark.slow),
        ("llamagen-tiny", "digits8-reconstruction", 6),
        pytest.param("shapes-tiny", "shapes", 1, marks=pytest.mark.slow),
        ("shapes-tiny", "shapes-validation", 1),
        pytest.param("shapes-tiny", "shapes-reconstruction", 5, marks=pytest.mark.slow),
        pytest.param("janus-tiny", "shapes", 1, marks=pytest.mark.slow),
    ],
)
def test_means_of_columns_are_the_records_metrics(
    tmp_path: Path, model: str, protocol: str, metrics: int
) -> None:
    card = Registry.default().protocol(protocol)
    few = ["--log-samples", "--log-shown", "2"]
    few += FEW if card.task == "generation" else []
    few += ["--set", "model.weights=random"] if model == "janus-tiny" else []
    arguments = ["evaluate", "--model", model, "--protocol", protocol, *few]
    assert alignbench(*arguments, "--out", tmp_path / "run").returncode == 0
    seeds = 2 if card.task == "generation" else 1
    assert require_the_records_means(tmp_path / "run", tmp_path / "run" / "sample-log") == seeds * metrics
    if card.labels == "prompts":
        _, lines = read(next((tmp_path / "run" / "sample-log").glob("*.jsonl")))
        assert all(line["prompt"] and line["tag"] for line in lines)
        scores = [line["scores"] for line in lines]
        assert all((x["shapes-images"] == 1) == (x["geneval-shapes.reason"] == "") for x in scores)


def test_drawbench_logs_prompts_and_three_scores(tmp_path: Path) -> None:
    """With small random networks in place of CLIP and HPS."""
    texts = ["a </script><b>cat</b>", 'two "dogs",\u202e', "a red\u2028book"]
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": x, "category": "Odd"} for x in texts]))
    networks = {
        "clip-vit-l-14-openai": save_folder(tmp_path / "quick", quick_gelu=True),
        "clip-vit-b-32-openai": save_folder(tmp_path / "quick", quick_gelu=True),
        "hpsv2.1": save_folder(tmp_path / "plain", quick_gelu=False, weights="open_clip_pytorch_model.bin"),
        "drawbench-prompts": tmp_path / "prompts.json",
    }
    files = [part for name, path in networks.items() for part in ("--set", f"assets.{name}={path}")]
    run: list[Any] = ["evaluate", "--model", "janus-tiny", "--protocol", "drawbench", *files, "--log-samples"]
    run += ["--set", "model.weights=random"]
    done = alignbench(*run, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    logs = tmp_path / "run" / "sample-log"
    assert require_the_records_means(tmp_path / "run", logs) == 3
    (path,) = logs.glob("*.jsonl")
    _, lines = read(path)
    assert [line["prompt"] for line in lines] == [text for text in texts for _ in range(4)]
    assert {line["tag"] for line in lines} == {"Odd"}
    assert set(lines[0]["scores"]) == {"clip-l14", "clip-b32", "hpsv2.1"}
    page = (logs / "index.html").read_text("utf-8")
    assert "<b>cat" not in page and page.count("</script>") == 2 and "\u202e" not in page


def pictures(page: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of a page's columns, and all its pictures with pixels in [-1, 1]."""
    text = page.read_text("utf-8")
    data = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.S)[0])

    def pixels(address: str) -> np.ndarray:
        kind, _, content = address.partition(",")
        assert kind == "data:image/png;base64"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(np.float64) / 127.5 - 1

    found = [
        {**one, **{key: pixels(one[key]) for key in ("src", "original") if one[key]},
         "file": f"{made['subject']}-t1-seed-{one['seed']}.jsonl"}
        for made in data["sets"] for one in made["pictures"]
    ]  # fmt: skip
    return [column["name"] for column in data["columns"]], found


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of AR-GRPO with two rewards that was logged, and the same run without a log."""
    root = tmp_path_factory.mktemp("logged")
    (root / "rewards.py").write_text(REWARDS)
    run: list[Any] = ["run", "--method", "ar-grpo", "--model", "llamagen-tiny", "--steps", "2", *FEW]
    run += ["--plugin", root / "rewards.py", "--set", "method.rewards=brightness@2,contrast|scale(3)@0.5"]
    for name, more in (("with", ["--log-samples"]), ("without", list[str]())):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ALIGNBENCH_CACHE", str(root / f"cache-{name}"))
            done = alignbench(*run, *more, "--out", root / name)
        assert done.returncode == 0, done.stderr
    return root / "with", root / "without"


@pytest.mark.slow
def test_rewards_are_those_of_the_images_on_the_page(logged: tuple[Path, Path]) -> None:
    """Computed again in float64 from the page's own pictures, each alone and in the optimised sum."""
    columns, found = pictures(logged[0] / "sample-log" / "index.html")
    assert len(found) > 60  # of 240
    logs = {path.name: read(path)[1] for path in (logged[0] / "sample-log").glob("*.jsonl")}
    for one in found:
        line = logs[one["file"]][one["id"]]
        bright, spread = one["src"].mean(), one["src"].std()
        expected = {"brightness": bright, "contrast|scale(3)": -3 * spread}
        expected["weighted-sum"] = 2 * bright - 0.5 * 3 * spread
        assert line["rewards"] == pytest.approx(expected, abs=1e-5)
        values = dict(zip(columns, one["values"], strict=True))
        assert values == {**line["scores"], **line["rewards"]}
        assert line["class"] == line["id"] % 10 and one["asked"] == f"{line['class']}: {line['name']}"
        assert (line["scores"]["class-accuracy"] == 1) == (
            line["scores"]["distribution-digits.recognised"] == line["class"]
        )


def test_the_log_changes_neither_plan_nor_results(logged: tuple[Path, Path]) -> None:
    plans = [json.loads((folder / "plan.json").read_text()) for folder in logged]
    assert plans[0] == plans[1]
    records = [json.loads((folder / "run.json").read_text()) for folder in logged]
    for record in records:
        for result in record["results"]:
            del result["sample_seconds"], result["evaluate_seconds"]
    for key in ("id", "results", "exports", "config"):
        assert records[0][key] == records[1][key]


def test_a_finished_run_is_logged_without_being_evaluated(
    logged: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From rows and tokens that are there; the same bytes, whole again where a file is lost."""

    def never(*_: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(DigitsDistribution, "measure", never)
    monkeypatch.setattr(Sampler, "generate", never)
    plugin = ["--plugin", logged[0].parent / "rewards.py"]
    before = {path.name: path.read_bytes() for path in (logged[0] / "sample-log").iterdir()}
    record = (logged[0] / "run.json").read_bytes()
    (logged[0] / "sample-log" / "method-t1-seed-1.jsonl").unlink()
    (logged[0] / "sample-log" / "base-t1-seed-0.jsonl").write_text("{}\n")
    for folder in logged:
        done = alignbench("evaluate", "--run", folder, "--log-samples", *plugin)
        assert done.returncode == 0, done.stderr
        assert {path.name: path.read_bytes() for path in (folder / "sample-log").iterdir()} == before
        assert not list((folder / "rows").rglob("sample-log"))
    assert (logged[0] / "run.json").read_bytes() == record


@pytest.mark.slow
def test_rewards_that_need_a_real_image_are_named(tmp_path: Path) -> None:
    """And are computed of reconstructions, which have one."""
    options: dict[str, Any] = {"protocol.samples": 60, "protocol.seeds": "0", "protocol.settings": "t1"}
    options |= {"method.pixel_weight": 2.0, "method.perceptual_weight": 0.0}
    job = ab.plan("vapi", "llamagen-tiny", steps=1, options=options, out=tmp_path / "run", log_samples=2)
    ab.run(job)
    header, lines = read(tmp_path / "run" / "sample-log" / "method-t1-seed-0.jsonl")
    assert set(header["rewards_left_out"]) == {"pixel-mse"} and header["rewards"] == {}
    assert "rewards" not in lines[0]
    assert "real image" in (tmp_path / "run" / "sample-log" / "index.html").read_text("utf-8")
    ab.evaluate(run=tmp_path / "run", protocol="digits8-reconstruction", log_samples=2)
    (logs,) = (tmp_path / "run" / "protocols").glob("*/sample-log")
    header, lines = read(logs / "base-reconstruction-seed-0.jsonl")
    assert header["setting"]["temperature"] is None and header["rewards_left_out"] == {}
    _, found = pictures(logs / "index.html")
    for one in found[: len(found) // 2]:  # the base's
        error = float(np.square(one["src"] - one["original"]).mean())
        assert lines[one["id"]]["rewards"]["pixel-mse"] == pytest.approx(-error, rel=1e-4)
        assert lines[one["id"]]["rewards"]["weighted-sum"] == pytest.approx(-2 * error, rel=1e-4)
        assert lines[one["id"]]["scores"]["rec-mse"] == pytest.approx(error / 4, rel=1e-9)


def test_given_images_are_logged(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", arr_0=numbers.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8))
    given = ["evaluate", "--samples", tmp_path / "images.npz", "--protocol", "digits8", "--log-samples"]
    given += ["--set", "protocol.samples=60", "--log-shown", "5", "--out", tmp_path / "run"]
    for _ in range(2):  # the second time everything is there
        assert alignbench(*given).returncode == 0
    _, lines = read(tmp_path / "run" / "sample-log" / "samples-given-seed-0.jsonl")
    assert set(lines[7]) == {"id", "subject", "setting", "seed", "scores"}
    likely = [line["scores"]["distribution-digits.probability"] for line in lines]
    _, found = pictures(tmp_path / "run" / "sample-log" / "index.html")
    order = sorted(range(60), key=lambda i: likely[i])
    assert {*order[:5], *order[-5:]} <= {one["id"] for one in found}


def test_what_cannot_be_logged_is_said(tmp_path: Path, logged: tuple[Path, Path]) -> None:
    run = ["run", "--method", "ntp", "--model", "llamagen-tiny", "--no-eval", "--log-samples"]
    done = alignbench(*run, "--out", tmp_path)
    assert done.returncode == 2 and "nothing is to be scored" in done.stderr
    plugin = ["--plugin", logged[0].parent / "rewards.py", "--protocol", "digits8"]
    more = ["--set", "protocol.samples=60", "--set", "protocol.seeds=7"]
    done = alignbench("evaluate", "--run", logged[0], "--log-samples", *plugin, *more)
    assert done.returncode == 2 and "no results of t1, sampling seed 7" in done.stderr
