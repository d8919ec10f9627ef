"""What machines, disks, schedulers and people do to a run."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from alignbench.record import FILE_NAME, read
from alignbench.training.signals import SIGNALS
from tests.drills.drill import LIMIT_S, TINY, Drill, Lost, check_words, command, in_process, outcome


def ended(out: Path) -> bool:
    return (out / FILE_NAME).exists() and read(out).status == "complete"


class Machine(Drill):
    """One thing that happens to a run of `TINY`."""

    turns = 0

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
                return
            done = self._ranks(out, ranks)
            if done.returncode or outcome(out) != self._wanted_of(ranks):
                said = done.stderr[-2000:].decode(errors="replace")
                raise Lost(
                    f"signal {number}, {ranks} processes: the repeated command ends otherwise:\n{said}"
                )

    def _ranks(self, out: Path, ranks: int, *more: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command(*TINY, *more, "--out", str(out), ranks=ranks), capture_output=True)

    @functools.cache  # noqa: B019
    def _wanted_of(self, ranks: int, *more: str) -> dict[str, object]:
        """The undisturbed run of several processes: sums in another order round otherwise."""
        whole = self.root / "-".join(["whole", str(ranks), *more])
        self._ranks(whole, ranks, *more).check_returncode()
        return outcome(whole)

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
        """One process of two, then of four, is asked to stop, or killed."""
        self.turns += 1
        self._stopped((*SIGNALS, signal.SIGKILL), ranks=2 if self.turns % 2 else 4)

    def restarts(self) -> None:
        """One process of two is killed and torchrun starts both again; in turn with shards and without."""
        self._started_again(["--standalone", "--nproc-per-node", "2"])

    def nodes(self) -> None:
        """The same with an agent for each process, as on two machines."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        node = ["--nnodes", "2", "--nproc-per-node", "1", "--local-addr", "localhost"]
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", address]
        self._started_again(node + meet, node + meet)

    def _started_again(self, *launchers: list[str]) -> None:
        self.turns += 1
        more = ["--set", "train.shard=full"] if self.turns % 2 else []
        wanted = self._wanted_of(2, *more)
        with self.trial() as folder, (folder / "errors").open("w+") as errors:
            out = folder / "run"
            run = ["--max-restarts", "3", "-m", "alignbench", *TINY, *more, "--out", str(out)]
            agents = [
                subprocess.Popen(
                    [sys.executable, "-m", "torch.distributed.run", *launcher, *run],
                    stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
                )
                for launcher in launchers
            ]  # fmt: skip
            running = self.draw.choice(agents)
            while self._child(running.pid) == running.pid and running.poll() is None:
                time.sleep(0.05)
            time.sleep(self.draw.uniform(0.0, 1.5 * self.seconds))  # from the first import to the last score
            # What has ended well is not started again: torchrun's other agent would wait for it in vain.
            if (target := self._child(running.pid)) != running.pid and not ended(out):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(target, signal.SIGKILL)
            try:
                codes = [agent.wait(LIMIT_S) for agent in agents]
            except subprocess.TimeoutExpired:
                for agent in agents:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(agent.pid, signal.SIGKILL)
                raise Lost(f"{more}: it hangs:\n{(folder / 'errors').read_text()[-3000:]}") from None
            if any(codes) or outcome(out) != wanted:
                raise Lost(f"{more}: it ends with {codes}:\n{(folder / 'errors').read_text()[-3000:]}")

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
