"""What every command prints on 80 columns, held against `transcripts/NAME.txt`.

After a change that is meant: `REPIN=1 python -m pytest tests/cli/test_transcripts.py`, then read what
`git diff` says. What a machine decides (times, measured numbers, versions, digests, paths) is written as `#`,
`x` or a word.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alignbench import progress
from alignbench.cli.main import app, main
from alignbench.config import estimate
from alignbench.figures.picture import Picture
from tests.conftest import ROOT

FOLDER = Path(__file__).parent / "transcripts"
REPIN = os.environ.get("REPIN", "") not in ("", "0")

SMALL = (
    "--steps 1 --set train.images_per_step=8 --set protocol.samples=60 --set protocol.seeds=0,1 "
    "--set protocol.settings=t1"
)
RUN = f"run --method vapi --model llamagen-tiny --out runs/a {SMALL}"
MADE = {
    "run": RUN,
    "run-again": RUN,
    "sweep": "sweep mini.toml --out sweep",
    "sample": "sample --model llamagen-tiny --run runs/a --number 4 --out images",
}
"""{name: command line}: done once, in this order; the others build upon it."""
SHOWN = {
    "list": "list",
    **{
        f"list-{kind}": f"list {kind}"
        for kind in (
            "models", "methods", "evaluators", "assets", "rewards", "datasets", "recipes", "protocols",
            "published", "sweeps",
        )
    },
    "list-unknown": "list modles",
    "show-method": "show vapi",
    "show-model": "show llamagen-tiny",
    "show-protocol": "show digits8",
    "show-recipe": "show vapi-llamagen-xxl",
    "show-published": "show va-pi",
    "show-train": "show train",
    "doctor": "doctor",
    "run-dry": "run --method vapi --model llamagen-tiny --dry-run",
    "run-not-runnable": "run --method vapi --model llamagen-xxl --set clip_range=0.1 --dry-run",
    "run-refused": "run --method vapi --model llamagen-xxl",
    "run-typo": "run --method vappi --model llamagen-tiny",
    "evaluate": "evaluate --model llamagen-tiny --reconstruction --out rec",
    "evaluate-refused": "evaluate --model llamagen-tiny --reconstruction --set protocol.samples=50",
    "evaluate-samples": "evaluate --samples images --protocol digits8 --dry-run",
    "compare": "compare runs/a:base runs/a:method",
    "leaderboard": "leaderboard runs --out boards",
    "leaderboard-html": "leaderboard runs --out boards --html",
    "leaderboard-check": "leaderboard --check --out boards",
    "report": "report runs/a --html",
    "watch": "watch runs/a",
    "audit": "audit runs",
    "figures": "figures runs --kind curves --kind tradeoff",
    "sweep-again": "sweep mini.toml --out sweep",
    "sweep-dry": "sweep mini.toml --out sweep --dry-run",
    "bench-training": "bench --method vapi --model llamagen-tiny --repeats 1 --set train.images_per_step=8",
    "bench-evaluators": "bench --protocol digits8 --images 60 --rows 60 --reference-rows 60",
    "fetch": "fetch vapi-llamagen-xxl --dry-run",
    "fetch-nothing": "fetch digits8",
    "reference": "reference images --out ref.npz",
    "new": "new method my-method",
    "pretrain": "pretrain llamagen-xxl",
    "verify": f"verify --golden {ROOT / 'tests/golden/golden-metrics'} --failures",
    "show-unknown": "show llamagen-xxxl",
}  # fmt: skip
"""{name: command line}: a new command needs a line here and REPIN=1."""
MEASURING = ("run", "evaluate", "compare", "leaderboard", "audit", "figures", "sweep", "bench", "watch")
"""Commands whose decimal numbers another machine may round otherwise."""
WHOLE = re.compile(r"^\$ |^alignbench: |^ +→ |alignbench run |^ +(from|to) |\S{25,}")
"""Lines that may be wider than the terminal: commands, errors, remedies, places, and long words."""
MINI = """
title = "Two methods on a few images"
summary = "A sweep from a file."
source = "own choice"
model = "llamagen-tiny"
metric = "fd-digits"
setting = "t1"
seeds = [0]
rows = [{title = "VA-π", method = "vapi"}, {title = "NTP", method = "ntp"}]
groups = {"T=1" = "t1", "guided" = "cfg2"}
columns = ["fd-digits", "precision", "recall"]
claims = [{better = "VA-π", than = "base", metric = "fd-digits", printed = "2.0 and 3.0, Table 1"}]

[values]
"train.steps" = 1
"train.images_per_step" = 8
"protocol.samples" = 60
"protocol.seeds" = "0"
"protocol.settings" = "t1,cfg2"
"""


def transcript(line: str) -> str:
    """Run a command in this process; return the line, what it prints on both streams, and its exit status."""
    printed, ended = io.StringIO(), pytest.raises(SystemExit)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), ended as stopped:
        main(shlex.split(line))
    text = f"$ alignbench {line}\n{printed.getvalue()}"
    return scrubbed(text + (f"exit {stopped.value.code}\n" if stopped.value.code else ""), line.split()[0])


def scrubbed(text: str, command: str) -> str:
    """Replace what differs between machines by something of the same width where others stand beside it."""
    text = re.sub(" +$", "", text, flags=re.M)
    text = text.replace(str(ROOT), "REPOSITORY").replace(str(Path.cwd()), "HERE")
    text = re.sub(r"[\d.e+-]+ s each", "T s each", text)
    text = re.sub(r"\b(reward|loss) [\d.e+-]+ ·", r"\1 N ·", text)
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,64}\b", lambda found: "x" * len(found[0]), text)
    if command == "doctor":
        text = re.sub(r"^(  [\w-]+ +)\d[\w.+]*$", r"\1VERSION", text, flags=re.M)
        text = re.sub(r"^(  (cpu|free disk|executable|OMP\w+) +).*$", r"\1…", text, flags=re.M)
    if command == "bench":  # its tables are measured: only the words stay
        said, heading, table = text.partition("value  unit\n")
        table = re.sub(r"^(.*?)  +[\d.e+-]+  ", r"\1 # ", table, flags=re.M)
        text = said.rstrip() + "\n" + heading + re.sub(" {2,}", " ", table)
    if command in MEASURING:
        text = re.sub(r"(\d of \d) +[\d.]+", r"\1 T", text)
        text = re.sub(r"(?<![\w.])\d+\.\d+(e-?\d+)?", lambda found: re.sub(r"\d", "#", found[0]), text)
    return text


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A folder with what the commands of `MADE` leave there, on no particular machine; their transcripts."""
    folder = tmp_path_factory.mktemp("transcripts")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as machine:
        machine.chdir(folder)
        for name in ("HOME", "TORCH_HOME"):
            machine.setenv(name, "home")
        machine.setattr("huggingface_hub.constants.HF_HUB_CACHE", "home")
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "FORCE_COLOR", "ALIGNBENCH_PATH", "HF_HOME"):
            machine.delenv(name, raising=False)
        told = {
            "COLUMNS": "80",
            "TERM": "dumb",
            "NO_COLOR": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        for name, value in told.items():
            machine.setenv(name, value)
        machine.setattr(sys, "argv", ["alignbench"])
        machine.setattr(torch.cuda, "is_available", lambda: False)
        machine.setattr(estimate, "disk_problem", lambda *_: None)
        machine.setattr(Picture, "png", lambda picture: b"")  # half of the time; nothing here shows them
        machine.setattr(progress, "PLAIN_INTERVAL", float("inf"))
        machine.setenv("ALIGNBENCH_CACHE", "cache")
        (folder / "mini.toml").write_text(MINI, encoding="utf-8")
        yield {name: transcript(line) for name, line in MADE.items()}
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [*MADE, *SHOWN])
def test_transcript(name: str, made: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNBENCH_CACHE", "cache")
    text = made.get(name) or transcript(SHOWN[name])
    path = FOLDER / f"{name}.txt"
    if REPIN:
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_command_has_a_transcript() -> None:
    begun = {line.split()[0] for line in [*MADE.values(), *SHOWN.values()]}
    assert begun == {command.name for command in app.registered_commands}
    assert {path.stem for path in FOLDER.glob("*.txt")} == {*MADE, *SHOWN}


def test_nothing_is_wider_than_the_terminal() -> None:
    """But what is to be copied whole, and words that cannot be broken."""
    wide = [
        f"{path.name}:{number}: {line}"
        for path in sorted(FOLDER.glob("*.txt"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > 80 and not WHOLE.search(line)
    ]
    assert not wide, "\n".join(wide)
