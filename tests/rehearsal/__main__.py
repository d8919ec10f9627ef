"""The README's real experiment on files of the official form: `python -m tests.rehearsal OUT`.

Word for word; only sizes are lowered, by cards that describe the stand-ins (`files.py`) and by `--set`.
OUT/log.md is what was typed and what came; `--write` puts it into docs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignbench.errors import EXIT_NOT_RUNNABLE
from alignbench.files import file_sha256
from tests.conftest import ROOT
from tests.rehearsal import files
from tests.rehearsal.server import serving

PAGE = ROOT / "docs" / "rehearsal.md"
TRAINING = [
    "train.steps=3", "train.images_per_step=1", "train.micro_batch=1", "method.group_size=2",
    "train.precision=fp32",
]  # fmt: skip
"""What every run is lowered to. CPUs without bf16 arithmetic are up to a hundred times slower with it."""
IMAGES = ["protocol.samples=10", "protocol.batch=10", "protocol.settings=nocfg,cfg2.0"]
SIZES = [*TRAINING, *IMAGES]
TEXT_SIZES = ["train.steps=1", *TRAINING[1:], "protocol.samples=2", "protocol.batch=2"]
METHODS = (
    ("vapi", "llamagen-xxl"), ("ste", "llamagen-xxl"), ("tokenizer-decoder", "llamagen-xxl"),
    ("ar-grpo", "llamagen-xl"),
)  # fmt: skip
METRICS = ("fid", "is", "precision-adm", "recall-adm")
EXPORT = Path("export", "policy.safetensors")
MARK = "<!-- log -->"
LAST_LINES = 6
LIMIT_S = 900


class Failed(Exception):
    """A command did not end as the README promises."""


class Rehearsal:
    """Runs commands as a user would and keeps what they print.

    Args:
        out: an empty folder; holds the package, the files, the caches and the runs.
        server: address that stands for the hub.
    """

    def __init__(self, out: Path, server: str) -> None:
        self.work = out / "work"
        self.work.mkdir()
        self.lines: list[str] = []
        self.secret = {str(out): "", server: "https://hub"}
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "ALIGNBENCH"))},
            "PYTHONPATH": str(out / "package"), "HF_ENDPOINT": server, "HOME": str(out / "home"),
            "HF_HOME": str(out / "hf"), "TORCH_HOME": str(out / "torch"), "COLUMNS": "110",
            "ALIGNBENCH_CACHE": str(out / "cache"),
        }  # fmt: skip

    def title(self, text: str) -> None:
        self.lines += [f"## {text}", ""]
        sys.stdout.write(f"== {text}\n")

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        """Start a command of the copied package; both streams go to one file."""
        assert words[0] == "alignbench"
        self.output = (self.work / "output.txt").open("w+")
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=self.work, env=self.environment, text=True,
            stdout=self.output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, command: str, *sets: str, status: int = 0, kill: Callable[[], bool] | None = None) -> str:
        """Run a command with values lowered, and return what it prints.

        Args:
            status: exit status that it must have.
            kill: SIGKILL is sent once this says so; the command must not end before.
        """
        words = [*shlex.split(command, comments=True), *(part for one in sets for part in ("--set", one))]
        begin = time.monotonic()
        process = self.start(words)
        while process.poll() is None:
            if kill and kill():
                process.send_signal(signal.SIGKILL)
                status = -signal.SIGKILL
            if time.monotonic() - begin > LIMIT_S:
                process.kill()
            time.sleep(0.05)
        self.output.seek(0)
        printed = self.output.read()
        self._note(words, process.returncode, time.monotonic() - begin, printed)
        if process.returncode != status or (kill and status == 0):
            raise Failed(f"{shlex.join(words)}: exit status {process.returncode}, not {status}\n{printed}")
        return printed

    def _note(self, words: list[str], status: int, seconds: float, printed: str) -> None:
        last = [line.rstrip() for line in re.split("[\r\n]", printed) if line.strip()][-LAST_LINES:]
        text = "\n".join([f"$ {shlex.join(words)}", *last, f"[exit status {status}, {seconds:.0f} s]"])
        for told, shown in self.secret.items():
            text = text.replace(told, shown)
        self.lines += ["```text", text, "```", ""]
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def record(self, method: str, model: str) -> tuple[Path, dict[str, Any]]:
        """The one finished run of a method on a model."""
        (path,) = self.work.glob(f"runs/{method}-{model}-s0-*/run.json")
        record: dict[str, Any] = json.loads(path.read_text())
        if record["status"] != "complete":
            raise Failed(f"{path.parent.name} is {record['status']}")
        return path.parent, record


def readme_block() -> list[str]:
    """The three commands of the README's real experiment."""
    _, _, after = (ROOT / "README.md").read_text().partition("## The real experiment")
    return after.split("```")[1].removeprefix("bash").strip().splitlines()


def make_files(out: Path, server: str) -> None:
    """Write everything that is served, the copy of the package whose cards describe it, and the images."""
    hub = out / "served"
    cards = files.Cards(out / "package", server)
    for model in ("llamagen-xxl", "llamagen-xl", "llamagen-xl-t2i"):
        files.llamagen(hub, cards, model)
    files.janus(hub, cards)
    files.assets(hub, cards)
    files.rewards(hub, cards)
    files.reference(hub)
    cards.lead_here()
    files.imagenet(out / "imagenet")
    files.captioned(out / "captioned")


def class_conditional(drill: Rehearsal, imagenet: Path) -> None:
    """The README's block, with a kill in training and one in sampling; then the other methods and tables."""
    dry_run, fetch, run = (line.partition("#")[0].strip() for line in readme_block())
    root = f"data.root={imagenet}"
    run = run.replace("data.root=/data/imagenet", root)
    folder = "runs/vapi-llamagen-xxl-s0-*"
    drill.title("The README's three commands, killed once in training and once in sampling")
    if "problem" not in drill.run(dry_run, status=EXIT_NOT_RUNNABLE):
        raise Failed("nothing is here yet, but the plan has no problem")
    drill.run(fetch)
    drill.run(f"{run} --dry-run", *SIZES)
    every = f"{run} --checkpoint-every 1"
    drill.run(every, *SIZES, kill=lambda: any(drill.work.glob(f"{folder}/checkpoints/step-*2")))
    drill.run(every, *SIZES, kill=lambda: any(drill.work.glob(f"{folder}/rows/**/shard-*.npz")))
    drill.run(every, *SIZES)
    drill.title("The same training, undisturbed: the exported weights must be equal")
    drill.run(f"{run} --no-eval --out undisturbed", *SIZES)
    killed = drill.work / drill.record("vapi", "llamagen-xxl")[0] / EXPORT
    if file_sha256(killed) != file_sha256(drill.work / "undisturbed" / EXPORT):
        raise Failed("the run that was killed twice exported other weights than the undisturbed one")
    drill.title("The other methods")
    for method, model in METHODS[1:]:
        drill.run(f"alignbench fetch {method}-{model}")
        unknown = "" if method == "ar-grpo" else "method.group_size"
        sizes = [size for size in SIZES if not unknown or not size.startswith(unknown)]
        drill.run(f"alignbench run --method {method} --model {model} --set {root}", *sizes)
    drill.title("The model as it is, and the tables")
    drill.run("alignbench evaluate --model llamagen-xxl", *IMAGES)
    drill.run("alignbench leaderboard runs")
    for method, model in METHODS:
        check_results(drill.record(method, model)[1])


def check_results(record: dict[str, Any]) -> None:
    """Base and aligned model, without and with guidance: FID, IS, precision and recall, each a number."""
    found = {(row["subject"], row["setting"]["name"]): row["metrics"] for row in record["results"]}
    for cell in itertools.product(("base", "method"), ("nocfg", "cfg2.0")):
        values = [found[cell].get(name, [None])[0] for name in METRICS]
        if not all(isinstance(value, float) and math.isfinite(value) for value in values):
            raise Failed(f"{record['id']}: {cell} has {dict(zip(METRICS, values, strict=True))}")


def text_conditional(drill: Rehearsal, captioned: Path) -> None:
    """VA-π on LlamaGen's text model and on Janus-Pro, scored by GenEval; images go out in its layout."""
    for model in ("llamagen-xl-t2i", "janus-pro-1b"):
        drill.title(f"Text to image: {model}")
        drill.run(f"alignbench fetch vapi-{model}")
        run = f"alignbench run --method vapi --model {model} --data text-images --set data.root={captioned}"
        drill.run(f"{run} --dry-run", *TEXT_SIZES)
        drill.run(run, *TEXT_SIZES)
        drill.record("vapi", model)
        drill.run(f"alignbench evaluate --model {model} --write-png --out images-{model}", *TEXT_SIZES[-2:])
        if not any(drill.work.glob(f"images-{model}/**/00000/metadata.jsonl")):
            raise Failed(f"images of {model} were not written in GenEval's layout")


def rehearse(out: Path) -> str:
    """Do everything in an empty folder, and return the log; raises Failed."""
    begin = time.monotonic()
    with serving(out / "served") as server:
        make_files(out, server)
        drill = Rehearsal(out, server)
        drill.lines += [
            f"Files of {files.total_size(out / 'served')} made in {time.monotonic() - begin:.0f} s.",
            "",
        ]
        try:
            text_conditional(drill, out / "captioned")
            class_conditional(drill, out / "imagenet")
            drill.lines.append(f"Everything together took {(time.monotonic() - begin) / 60:.0f} minutes.")
        finally:
            log = "\n".join(drill.lines)
            (out / "log.md").write_text(log)
    return log


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.rehearsal", description=__doc__)
    parser.add_argument("out", type=Path, help="an empty folder with 20 GB of room")
    parser.add_argument("--write", action="store_true", help=f"put the log into {PAGE.relative_to(ROOT)}")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    log = rehearse(asked.out.resolve())
    if asked.write:
        head, mark, _ = PAGE.read_text().partition(MARK)
        PAGE.write_text(f"{head}{mark}\n\n{log}\n")


if __name__ == "__main__":
    main()
