"""What a user types and what comes back: exit codes and single clear lines."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer.main

from alignbench.cli import cards
from alignbench.cli.main import app
from alignbench.config.settings import COMMON_OPTIONS
from alignbench.registry.lookup import Registry
from tests.conftest import ROOT
from tests.helpers.command import alignbench

TINY = ["run", "--method", "vapi", "--model", "llamagen-tiny"]
LARGE = ["run", "--method", "vapi", "--model", "llamagen-xxl"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["run", "--method", "vappi", "--model", "llamagen-tiny"],
            "alignbench: no method named 'vappi'. Did you mean vapi? See: alignbench list methods",
        ),
        ([*TINY, "--set", "method.clip=0.1"], "'method.clip'. Did you mean method.clip_range?"),
        ([*TINY, "--set", "model.policy=/nowhere/x.pt"], "/nowhere/x.pt"),
        ([*TINY, "--data", "folder", "--set", "data.root=/nowhere"], "a folder\n    → --set data.root=PATH"),
        (["list", "modles"], "alignbench: no kind named 'modles'. Did you mean models"),
        (["show", "llamagen-xxxl"], "Did you mean llamagen-xxl"),
        (["leaderboard", "/nowhere"], "/nowhere does not exist"),
        (["verify", "--golden", "/nowhere"], "/nowhere is not a folder"),
        (["pretrain", "llamagen-xxl"], "cannot be pretrained here"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line_and_exit_2(arguments: list[str], line: str) -> None:
    done = alignbench(*arguments)
    assert done.returncode == 2
    assert line in done.stderr


def test_missing_weights_stop_at_once_with_the_fetch_command() -> None:
    done = alignbench(*LARGE, "--no-eval")
    assert done.returncode == 2
    assert "alignbench fetch llamagen-xxl" in done.stderr
    assert re.search(r"c2i_XXL_384\.pt is not in /\S+/weights/llamagen-xxl", done.stderr)


def test_dry_runs() -> None:
    done = alignbench(*LARGE, "--set", "clip_range=0.1", "--dry-run")
    assert done.returncode == 2  # not runnable: no weights here
    assert "1,410,972,672 parameters" in done.stdout
    assert "128 images × 8 sequences per step" in done.stdout
    assert "method.clip_range = 0.1 (--set)" in done.stdout
    assert re.search(r"estimate +\d+ GiB", done.stdout)
    assert len(done.stdout.partition("problems")[0].splitlines()) <= 20
    as_json = json.loads(alignbench(*LARGE, "--dry-run", "--json").stdout)
    assert as_json["sequences_per_step"] == 1024 and as_json["problems"]
    done = alignbench(*TINY, "--dry-run")
    assert done.returncode == 0 and "problem" not in done.stdout


def test_list_and_show() -> None:
    listed = json.loads(alignbench("list", "--json").stdout)
    assert {"vapi"} <= set(listed["methods"]) and len(listed["models"]) >= 15
    shown = json.loads(alignbench("show", "llamagen-xxl", "--json").stdout)
    assert shown["kind"] == "models" and shown["policy"]["parameters"] == 1_410_972_672
    text = alignbench("show", "vapi").stdout
    assert "method.group_size" in text and "arXiv:2512.19680" in text


def test_every_card_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry.default()
    names = sorted(
        {name for members in registry.locations.values() for name in members} | set(COMMON_OPTIONS)
    )
    for name in sorted(names):
        cards.show(name=name, plugin=[], as_json=False)
        assert name in capsys.readouterr().out
        cards.show(name=name, plugin=[], as_json=True)
        json.loads(capsys.readouterr().out)


def test_doctor_reports_what_can_run() -> None:
    facts = json.loads(alignbench("doctor", "--json").stdout)
    assert facts["models"]["llamagen-tiny"] == {"weights": "present", "runs": "yes", "missing": []}
    assert facts["models"]["llamagen-xxl"]["weights"] == "missing"
    assert facts["versions"]["torch"] and facts["device"]["cpu"]


def test_the_command_line_surface_is_frozen() -> None:
    """Adding an option is a decision: change this list with it."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    surface = {
        name: sorted({option for parameter in command.params for option in parameter.opts} - {"--help"})
        for name, command in commands.items()
    }
    assert surface == SURFACE


SURFACE = {
    "run": [
        "--bench", "--checkpoint-every", "--data", "--dry-run", "--eval", "--grid-every", "--json",
        "--log-samples", "--log-shown", "--method", "--model", "--nodes", "--nproc", "--out", "--plugin",
        "--protocol", "--recipe", "--resume", "--seed", "--set", "--steps", "--track", "--workers", "-m",
    ],
    "watch": ["--json", "--once", "runs"],
    "evaluate": [
        "--dry-run", "--json", "--log-samples", "--log-shown", "--model", "--name", "--nproc", "--out",
        "--plugin", "--protocol", "--reconstruction", "--run", "--samples", "--set", "--workers",
        "--write-npz", "--write-png",
    ],
    "sample": [
        "--cfg", "--classes", "--model", "--number", "--out", "--prompt", "--run", "--seed", "--set",
        "--temperature", "--top-k", "--top-p", "-n",
    ],
    "reference": [
        "--batch", "--image-size", "--images", "--limit", "--out", "--seed", "--set", "--workers", "images",
    ],
    "leaderboard": ["--check", "--format", "--html", "--out", "--plugin", "runs"],
    "report": ["--html", "run"],
    "compare": ["--json", "--metric", "--plugin", "a", "b"],
    "list": ["--json", "--plugin", "kind"],
    "show": ["--json", "--plugin", "name"],
    "new": ["--out", "kind", "name"],
    "bench": [
        "--data", "--images", "--json", "--method", "--model", "--plugin", "--protocol", "--reference-rows",
        "--repeats", "--rows", "--set", "-m",
    ],
    "audit": ["--json", "runs"],
    "figures": [
        "--classes", "--images", "--kind", "--metric", "--out", "--prompt", "--prompts", "--seed",
        "--setting", "runs",
    ],
    "sweep": ["--dry-run", "--json", "--out", "--plugin", "--set", "sweep"],
    "doctor": ["--json", "--method"],
    "fetch": ["--dry-run", "names"],
    "pretrain": ["--out", "--seed", "model"],
    "verify": ["--device", "--failures", "--golden", "--json"],
}  # fmt: skip


def test_leaderboards_are_written_with_pictures_or_printed(tmp_path: Path) -> None:
    records = [str(path) for path in (ROOT / "leaderboards" / "records").glob("vapi-llamagen-tiny-*.json")]
    out = ["--out", str(tmp_path)]
    made = alignbench("leaderboard", *records, *out).stdout.split()
    picture = tmp_path / "digits8-v1-llamagen-tiny.png"
    assert str(picture) in made and picture.read_bytes().startswith(b"\x89PNG")
    assert alignbench("leaderboard", *records, *out).stdout.strip() == "", "nothing changed, nothing drawn"
    picture.unlink()
    checked = alignbench("leaderboard", "--check", *out)
    assert checked.returncode == 1 and f"{picture.name}: missing" in checked.stdout
    before = sorted(tmp_path.rglob("*"))
    printed = {form: alignbench("leaderboard", *records, *out, "--format", form).stdout for form in FORMATS}
    assert all(text in printed[form] for form, text in FORMATS.items())
    assert json.loads(printed["json"])[0]["headline"][0]["label"] == "VA-π"
    assert sorted(tmp_path.rglob("*")) == before


FORMATS = {"markdown": "| 1 (1) | VA-π |", "csv": "protocol,version,", "latex": r"\toprule", "json": '"rank"'}
