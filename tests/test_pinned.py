"""What stays as it is while code moves: plans, protocols, trained weights, help texts, leaderboards.

All of it is asked of the command line, in this process. After a change that is meant, write the files in
`tests/golden/pinned` anew and read what `git diff` says: `REPIN=1 python -m pytest tests/test_pinned.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignbench.cli.main import main
from tests.conftest import DATA, ROOT

PINNED = DATA / "pinned"
REPIN = os.environ.get("REPIN", "") not in ("", "0")
EMBEDDED = ("llamagen-tiny", "shapes-tiny", "janus-tiny")
TRAINED = ("llamagen-tiny", "shapes-tiny")
SHORT = [
    "--steps", "4", "--no-eval", "--set", "train.images_per_step=8", "--set", "train.micro_batch=4",
    "--set", "train.warmup_steps=2",
]  # fmt: skip
ELSEWHERE = "weights-elsewhere.json"
"""Bits on a second CPU, where VA-π draws other tokens on the shapes; made by hand there, not by REPIN=1."""
TOLERANCE = 2e-6
"""On another CPU: of a tensor's sum and sum of absolute values, relative to the latter. With an old
CPU's kernels most files differ by at most 4e-7; a learning rate 10 % higher moves most of them by more."""
WIDER = {"tokenizer-decoder on shapes-tiny": 3e-4, "ar-grpo on shapes-tiny": 3e-4}
"""Where rounding decides which token or image is taken: 1.7e-4 and 1.3e-4 with those kernels."""


@pytest.fixture(autouse=True)
def _no_particular_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide where machines differ: files of other programs, launchers, GPUs, threads, terminals."""
    for name in ("HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home"))
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["alignbench"])  # both: the name that help begins with
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def alignbench(*arguments: str, may_exit: tuple[int, ...] = (0,)) -> str:
    """Run a command in this process and return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        main(list(arguments))
    code = ended.value.code or 0
    assert code in may_exit, f"alignbench {' '.join(arguments)}: exit status {code}\n{printed.getvalue()}"
    return printed.getvalue()


def cards(kind: str) -> list[str]:
    return list(json.loads(alignbench("list", kind, "--json"))[kind])


def plan(*arguments: str) -> dict[str, Any]:
    """The plan of a run, whether or not it could run here."""
    made: dict[str, Any] = json.loads(alignbench("run", *arguments, "--dry-run", "--json", may_exit=(0, 2)))
    return made


def maker() -> dict[str, str]:
    """What the bits of weights and the layout of help texts depend on, apart from our own code."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    vendors = [line.rpartition(":")[2].strip() for line in lines if line.startswith("vendor_id")]
    cpu = [platform.machine(), *vendors[:1], torch.backends.cpu.get_cpu_capability()]
    return {"cpu": " ".join(cpu), "torch": torch.__version__, "typer": version("typer")}


def as_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def pinned(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((PINNED / name).read_text(encoding="utf-8"))
    return content


def write(name: str, content: dict[str, Any]) -> None:
    PINNED.mkdir(exist_ok=True)
    (PINNED / name).write_text(as_text(content), encoding="utf-8")


def compare(name: str, now: dict[str, Any], before: dict[str, Any]) -> None:
    """Fail with one line for each entry that is new, gone or another one."""
    lines = [
        f"{key}\n    pinned: {before.get(key, 'nothing')}\n    now:    {now.get(key, 'nothing')}"
        for key in sorted({*now, *before})
        if now.get(key) != before.get(key)
    ]
    if lines:
        pytest.fail(f"{len(lines)} of {name} differ:\n" + "\n".join(lines), pytrace=False)


def check(name: str, now: dict[str, Any]) -> None:
    """Compare with a file byte for byte, or write it."""
    if REPIN:
        write(name, now)
    compare(name, now, pinned(name))
    assert (PINNED / name).read_bytes() == as_text(now).encode(), f"{name} was edited by hand"


def test_plans() -> None:
    """Every recipe on each of its models, and every method on the tiny ones with the recipe it gets there."""
    made = {}
    for method in cards("methods"):
        for model in EMBEDDED:
            made[f"{method} on {model}"] = plan("--method", method, "--model", model)
    for recipe in cards("recipes"):
        card = json.loads(alignbench("show", recipe, "--json"))
        for model in card["models"]:
            key = f"{card['method']} on {model}, recipe {recipe}"
            made[key] = plan("--method", card["method"], "--model", model, "--recipe", recipe)
    check("plans.json", {key: {"id": one["id"], "digest": one["digest"]} for key, one in made.items()})


def test_protocols() -> None:
    given = ["--method", "ntp", "--model", "llamagen-tiny", "--protocol"]
    check("protocols.json", {name: plan(*given, name)["protocol"]["digest"] for name in cards("protocols")})


@pytest.mark.slow
def test_trained_weights(tmp_path: Path) -> None:
    """Four steps of every method, two micro-batches each: equal bits, or equal sums on another CPU."""
    files = {}
    for model in TRAINED:
        for method in cards("methods"):
            folder = tmp_path / f"{method}-{model}"
            alignbench("run", "--method", method, "--model", model, "--out", str(folder), *SHORT)
            for path in (folder / "export").iterdir():
                files[f"{method} on {model}: {path.name}"] = path
    bits = {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in files.items()}
    if REPIN:
        content = {key: {"sha256": bits[key], "tensors": sums(path)} for key, path in files.items()}
        write("weights.json", content)
        write("made-with.json", maker())
    before, here = pinned("weights.json"), {key: maker()[key] for key in ("cpu", "torch")}
    if here == {key: pinned("made-with.json")[key] for key in here}:
        compare("weights.json", bits, {key: entry["sha256"] for key, entry in before.items()})
        return
    if here == pinned(ELSEWHERE)["made-with"]:
        compare(ELSEWHERE, bits, pinned(ELSEWHERE)["sha256"])
        return
    compare("weights.json", dict.fromkeys(files, "a file"), dict.fromkeys(before, "a file"))
    for key, path in files.items():
        tolerance = WIDER.get(key.partition(":")[0], TOLERANCE)
        compare(f"weights.json, {key}", *apart(sums(path), before[key]["tensors"], tolerance))


def sums(path: Path) -> dict[str, str]:
    """{tensor: its sum and sum of absolute values}, correctly rounded, so whatever the order of adding."""
    tensors = {name: tensor.double().flatten().tolist() for name, tensor in load_file(path).items()}
    return {name: f"{math.fsum(one)!r} {math.fsum(map(abs, one))!r}" for name, one in tensors.items()}


def apart(
    now: dict[str, str], before: dict[str, str], tolerance: float
) -> tuple[dict[str, str], dict[str, str]]:
    """Leave out the tensors whose sums are as near as rounding on another CPU explains."""
    near = set()
    for name in now.keys() & before.keys():
        (total, size), (old_total, old_size) = (map(float, one[name].split()) for one in (now, before))
        if max(abs(total - old_total), abs(size - old_size)) <= tolerance * old_size:
            near.add(name)
    left = [{name: one[name] for name in one if name not in near} for one in (now, before)]
    return left[0], left[1]


def test_help_texts() -> None:
    """Of the command and of all its sub-commands, 80 columns wide."""
    texts = {"alignbench": alignbench("--help")}
    listed = texts["alignbench"].partition("Commands:\n")[2].splitlines()
    texts |= {name: alignbench(name, "--help") for name in (line.split()[0] for line in listed if line)}
    folder = PINNED / "help"
    if REPIN:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.txt"):
            path.unlink()
        for name, text in texts.items():
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    elif maker()["typer"] != pinned("made-with.json")["typer"]:
        pytest.skip("help texts were pinned with another version of typer, which lays them out")
    compare("help", texts, {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")})


def test_leaderboards_are_what_their_records_give() -> None:
    alignbench("leaderboard", "--check", "--out", str(ROOT / "leaderboards"))
