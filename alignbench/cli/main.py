"""The `alignbench` command: sub-commands, and errors turned into one line and an exit status."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from alignbench import __version__
from alignbench.cli import board, catalogue, doctor, evaluate, new, run, sweep, weights
from alignbench.errors import UserError

app = typer.Typer(
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
app.command("evaluate")(evaluate.evaluate)
app.command("sample")(evaluate.sample)
app.command("leaderboard")(board.leaderboard)
app.command("list")(catalogue.list_cards)
app.command("show")(catalogue.show)
app.command("doctor")(doctor.doctor)
app.command("fetch")(weights.fetch)
app.command("pretrain")(weights.pretrain)
app.command("verify")(weights.verify)
app.command("new")(new.new)
app.command("sweep")(sweep.sweep)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every expected error ends in one line on standard error."""
    try:
        app(args=arguments)
    except UserError as error:
        Console(stderr=True).print(f"alignbench: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
