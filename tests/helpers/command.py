"""The command line, called in this process."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

from alignbench.cli.main import main


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def alignbench(*arguments: object) -> Done:
    """Run it; what it prints is returned, and an unexpected error is raised as it is."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
