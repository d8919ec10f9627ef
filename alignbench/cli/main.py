"""The `alignbench` command: sub-commands, and errors turned into one line and an exit status."""

from __future__ import annotations

import functools
import io
import os
import socket
import sys
import traceback
from typing import Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from alignbench import __version__
from alignbench.cli import (
    bench,
    cards,
    doctor,
    evaluate,
    figures,
    leaderboard,
    new,
    reference,
    run,
    sample,
    sweep,
    watch,
    weights,
)
from alignbench.cli.options import words_of_bash
from alignbench.commands.launch import note_process, note_status
from alignbench.distributed import has_company, join_slurm, rank
from alignbench.errors import EXIT_FAILED, EXIT_NOT_RUNNABLE, EXIT_PARTIAL, FULL, UserError
from alignbench.text import visible


class Commands(TyperGroup):
    """The sub-commands; Ctrl-C ends all of them in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run a sub-command.

        Raises:
            UserError: it was interrupted where it keeps nothing of its own (exit status 3).
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise UserError("interrupted", fix="run the same command again", exit_code=EXIT_PARTIAL) from None


app = typer.Typer(
    cls=Commands,
    name="alignbench",
    help="Post-train autoregressive image generators with interchangeable methods and compare them fairly.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        Console().print(f"alignbench {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show and exit."),
) -> None:
    """Common options."""


app.command("run")(run.run)
app.command("watch")(watch.watch)
app.command("evaluate")(evaluate.evaluate)
app.command("sample")(sample.sample)
app.command("reference")(reference.reference)
app.command("leaderboard")(leaderboard.leaderboard)
app.command("report")(leaderboard.report)
app.command("compare")(leaderboard.compare)
app.command("audit")(leaderboard.audit)
app.command("figures")(figures.figures)
app.command("list")(cards.list_cards)
app.command("show")(cards.show)
app.command("doctor")(doctor.doctor)
app.command("fetch")(weights.fetch)
app.command("pretrain")(weights.pretrain)
app.command("verify")(weights.verify_golden)
app.command("new")(new.new)
app.command("sweep")(sweep.sweep)
app.command("bench")(bench.bench)


command = functools.cache(lambda: typer.main.get_command(app))
"""Built once for callers that use it many times."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every expected error ends in one line on standard error."""
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]  # a terminal that does not know its width; rich would print nothing
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without π or → is no reason to stop
    try:
        note_process()
        join_slurm()
        with words_of_bash():
            command()(args=arguments, prog_name="alignbench")
    except UserError as error:
        _end(error)
    except OSError as error:
        if error.strerror is None or (error.filename is None and error.errno not in FULL):
            _end(error)
        # A run words its own; what arrives here comes from before it, but for a full disk.
        exit_code = EXIT_FAILED if error.errno in FULL else EXIT_NOT_RUNNABLE
        what = ": ".join(filter(None, (error.filename, error.strerror.lower())))
        _end(UserError(what, exit_code=exit_code))
    except Exception as error:
        _end(error)


def _end(error: Exception) -> NoReturn:
    """End with an error's exit status; of several processes one says it, with its number and machine."""
    expected = isinstance(error, UserError)
    exit_code = error.exit_code if isinstance(error, UserError) else EXIT_FAILED
    text = str(error) if expected else f"{type(error).__name__}: {error}"
    note_status(exit_code)
    if has_company():
        from alignbench.training.attempts import has_last_word

        if not has_last_word(error):
            sys.exit(exit_code)
        if not expected:
            traceback.print_exception(error)
        text = f"process {rank()} on {socket.gethostname()}: {text}"
    elif not expected:
        raise error
    Console(stderr=True).print(f"alignbench: {visible(text)}", highlight=False, markup=False, soft_wrap=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
