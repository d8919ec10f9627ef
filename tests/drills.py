"""What goes wrong in practice, many times over: `python -m tests.drills --kind flip --count 300 --seed 0`.

A trial is a real run of a tiny model to which one thing happens. It must end as the undisturbed run ends, or
say in one line what is wrong and end undisturbed when the command is repeated; anything else is lost. Prints
tried, survived and lost, and fails if anything was.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from alignbench.record import read
from alignbench.training.signals import SIGNALS

TINY = [
    "run", "--method", "ar-grpo", "--model", "llamagen-tiny", "--steps", "4", "--checkpoint-every", "1",
    "--set", "train.images_per_step=8", "--set", "method.group_size=2",
    "--set", "protocol.samples=200", "--set", "protocol.seeds=0", "--set", "protocol.settings=t1",
]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
LIMIT_S = 240
"""A command that takes longer hangs."""


class Lost(Exception):
    """A trial that ended neither as it should nor with a word."""


def outcome(folder: Path) -> dict[str, object]:
    """What a finished run is compared by: weights, samples' digests behind the scores, and scores."""
    record = read(folder)
    results = [(x.subject, x.evaluator, x.metrics, x.intervals, x.n) for x in record.results]
    return {"status": record.status, "exports": record.exports, "results": results}


def command(*arguments: str, ranks: int = 1) -> list[str]:
    """The command line of a run."""
    launcher = [*TORCHRUN, str(ranks)] if ranks > 1 else [sys.executable]
    return [*launcher, "-m", "alignbench", *arguments]


def in_process(*arguments: str) -> tuple[int, str]:
    """Run a command here; (exit status, standard error)."""
    from alignbench.cli.main import main

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(list(arguments))
            code: object = 0
        except SystemExit as ended:
            code = ended.code or 0
    return int(str(code)), errors.getvalue()


def check_words(errors: str) -> None:
    """A failure is one line that begins with the program's name, and no traceback of ours."""
    lines = [line for line in errors.splitlines() if line.startswith("alignbench: ")]
    if len(lines) != 1 or "Traceback" in errors:
        raise Lost(f"no single line says what is wrong:\n{errors[-2000:]}")


class Drill:
    """The undisturbed run, and trials that are compared with it.

    Args:
        root: an empty folder.
        seed: decides what happens, when and where.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.draw = root, random.Random(seed)
        self.cache = root / "cache"
        os.environ["ALIGNBENCH_CACHE"] = str(self.cache)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.whole = root / "whole"
        started = time.monotonic()
        subprocess.run(command(*TINY, "--out", str(self.whole)), check=True, capture_output=True)
        self.seconds = time.monotonic() - started
        self.wanted = outcome(self.whole)

    @contextlib.contextmanager
    def trial(self) -> Iterator[Path]:
        """Give a folder of its own and a copy of the cache."""
        with tempfile.TemporaryDirectory(dir=self.root) as name:
            folder = Path(name)
            shutil.copytree(self.cache, folder / "cache")
            os.environ["ALIGNBENCH_CACHE"] = str(folder / "cache")
            try:
                yield folder
            finally:
                os.environ["ALIGNBENCH_CACHE"] = str(self.cache)

    def finish(self, out: Path) -> None:
        """Repeat the command undisturbed and compare."""
        code, errors = in_process(*TINY, "--out", str(out))
        if code or outcome(out) != self.wanted:
            raise Lost(f"the repeated command ended with {code} and other results:\n{errors[-2000:]}")

    # --- what happens ---

    def flip(self) -> None:
        """One bit of one file that was written and is believed later."""
        with self.trial() as folder:
            out = folder / "run"
            shutil.copytree(self.whole, out)
            stage = self.draw.choice(["continue", "score", "cache", "record"])
            if stage != "record":
                (out / "run.json").unlink()
            if stage == "score":
                for path in (out / "metrics").glob("method-*"):
                    path.unlink()
            if stage == "cache":
                shutil.rmtree(out)
            root = folder / "cache" if stage == "cache" else out
            files = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size]
            files = [path for path in files if path.suffix in {".safetensors", ".pt", ".json", ".npz"}]
            path = self.draw.choice(sorted(files))
            content = bytearray(path.read_bytes())
            bit = self.draw.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            code, errors = in_process(*TINY, "--out", str(out))
            if code:
                check_words(errors)
            elif outcome(out) != self.wanted:
                raise Lost(f"{stage}: bit {bit} of {path.relative_to(folder)} was believed")

    def _stopped(self, numbers: tuple[int, ...], *, ranks: int = 1) -> None:
        """Send a signal at a random moment, to one of the processes, then repeat the command."""
        number = self.draw.choice(numbers)
        with self.trial() as folder, (folder / "errors").open("w+") as errors:
            out = folder / "run"
            running = subprocess.Popen(
                command(*TINY, "--out", str(out), ranks=ranks),
                stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            )  # fmt: skip
            time.sleep(self.draw.uniform(0.05, self.seconds * (1.0 if ranks == 1 else 1.5)))
            target = running.pid if ranks == 1 else self._child(running.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, number)
            try:
                code = running.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                raise Lost(f"signal {number}: it hangs") from None
            text = (folder / "errors").read_text()
            if number != signal.SIGKILL and ranks == 1 and code not in (0, 3):
                raise Lost(f"signal {number}: exit status {code}:\n{text[-2000:]}")
            if number != signal.SIGKILL and code == 3:
                check_words(text)
            if ranks == 1:
                self.finish(out)
            elif subprocess.run(
                command(*TINY, "--out", str(out), ranks=ranks), capture_output=True
            ).returncode:
                raise Lost(f"signal {number}: the repeated command fails")

    def _child(self, launcher: int) -> int:
        """One of the processes that a launcher started; the launcher where there are none yet."""
        text = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
        children = [int(word) for word in text.split()]
        return self.draw.choice(children) if children else launcher

    def signal(self) -> None:
        """What users, closed terminals and schedulers send."""
        self._stopped(SIGNALS)

    def kill(self) -> None:
        """SIGKILL."""
        self._stopped((signal.SIGKILL,))

    def ranks(self) -> None:
        """One process of two is asked to stop, or killed."""
        self._stopped((*SIGNALS, signal.SIGKILL), ranks=2)

    def disk(self) -> None:
        """Files cannot grow beyond a random size, as on a full disk."""
        limit = int(10 ** self.draw.uniform(1.5, 6.5))

        def small_files() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        with self.trial() as folder:
            out = folder / "run"
            done = subprocess.run(
                command(*TINY, "--out", str(out)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=LIMIT_S,
                preexec_fn=small_files,
            )
            if done.returncode:
                check_words(done.stderr)
            self.finish(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ("flip", "signal", "kill", "ranks", "disk")
    parser.add_argument("--kind", choices=kinds, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    print(soak(chosen.kind, chosen.count, chosen.seed))  # noqa: T201


def soak(kind: str, count: int, seed: int) -> str:
    """Make trials; return the report.

    Raises:
        SystemExit: any was lost; the report is its message.
    """
    lost: list[str] = []
    with tempfile.TemporaryDirectory() as root:
        drill = Drill(Path(root), seed)
        trial: Callable[[], None] = getattr(drill, kind)
        for number in range(count):
            try:
                trial()
            except Lost as error:
                lost.append(f"trial {number}: {error}")
    report = "\n".join([f"{kind}: tried {count}, survived {count - len(lost)}, lost {len(lost)}", *lost])
    if lost:
        raise SystemExit(report)
    return report


if __name__ == "__main__":
    main()
