"""Plug-ins that answer wrongly from some call on; mended, the same command ends as if nothing had been.

Half of the trials break what a plug-in stands on (its file stays, so the run is continued), the others the
file itself (another file is another run, which starts anew).
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.drills.drill import SMALL, Drill, Lost, check_failed, check_words, in_process

WRONG = {
    "reward": (
        "column", "short", "long", "scalar", "none", "array", "list", "whole", "complex", "nan", "inf",
        "meta", "error", "silent", "deep", "memory", "speechless", "cancelled", "leave", "leave-with-words",
    ),
    "method": (
        "none", "tuple", "error", "leave", "cancelled", "miscounted", "no-number", "loss-tensor",
        "loss-vector", "loss-nan", "loss-loose", "loss-meta", "loss-no-number", "loss-backward", "loss-error",
    ),
    "evaluator": (
        "none", "list", "short", "scalar", "nan", "objects", "tensor", "ragged", "unsaid", "error", "leave",
        "cancelled", "score-none", "score-number", "score-other-name", "score-no-number", "score-twice",
        "score-interval", "score-error", "score-leave",
    ),
}  # fmt: skip
"""{part: ways to be wrong}, as `drilled.py` understands them."""
NAMES = {"reward": "drilled-reward", "function": "drilled_function", "method": "Drilled", "evaluator": "grey"}
"""{part: what a message must say}."""

SOURCE = (Path(__file__).parent / "drilled.py").read_text(encoding="utf-8")

PROTOCOL = """
title = "Grey"
summary = "Grey."
version = 1
condition = "class"
image_size = 8
samples = 60
seeds = [0]
labels = "balanced"
precision = "fp32"
batch = 20
evaluators = ["grey"]
rank_by = "grey"
settings = { t1 = { title = "T=1" } }
"""


def write(folder: Path, fault: str = "") -> None:
    """The plug-in file, with a fault of its own or sound."""
    (folder / "drilled.py").write_text(SOURCE.replace('FAULT = ""', f"FAULT = {fault!r}"))


def cards(place: Path) -> None:
    """The sound plug-in and its protocol, in a folder of cards."""
    (place / "protocols").mkdir(parents=True)
    (place / "protocols" / "grey8.toml").write_text(PROTOCOL)
    write(place)


class Plugin(Drill):
    """A reward, a method and an evaluator of one file."""

    def __init__(self, root: Path, seed: int) -> None:
        place = root / "cards"
        cards(place)
        self.place, self.turns = place, 0
        self.arguments = [
            "run", "--method", "drilled", "--model", "llamagen-tiny", *SMALL, "--protocol", "grey8",
            "--plugin", str(place / "drilled.py"), "--plugin", str(place),
            "--set", "method.rewards=drilled-reward@1, drilled_function@1", "--set", "train.failed_rewards=0",
        ]  # fmt: skip
        super().__init__(root, seed)

    def plugin(self) -> None:
        """One part goes wrong in one way."""
        self.turns += 1
        part = self.draw.choice(list(NAMES))
        how = self.draw.choice(WRONG["reward" if part == "function" else part])
        calls = 1 if part == "evaluator" else 4  # at least; what is known of the base comes from the cache
        fault = f"{part} {how} {self.draw.randrange(calls)}"
        with self.trial() as folder:
            out, mended = folder / "run", folder / "run"
            try:
                if self.turns % 2:
                    os.environ["DRILLED"] = fault
                else:
                    write(self.place, fault)
                    mended = folder / "again"
                code, errors = in_process(*self.arguments, "--out", str(out))
                if code != 1:
                    raise Lost(f"{fault}: exit status {code}\n{errors[-1000:]}")
                check_words(errors, NAMES[part])
                check_failed(out)
            except Lost as error:
                raise Lost(f"{fault}: {error}") from error
            finally:
                os.environ.pop("DRILLED", None)
                write(self.place)
            self.finish(mended)
