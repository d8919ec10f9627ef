"""`alignbench fetch`, `pretrain` and `verify`: getting weights, making them, checking the arithmetic."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import typer
from rich.console import Console

from alignbench.cli.common import print_json, put
from alignbench.cli.options import Json
from alignbench.errors import EXIT_FAILED, UserError, suggest
from alignbench.hub.locate import FileStatus, assets_of, locate_asset, locate_weights
from alignbench.progress import Progress
from alignbench.registry.lookup import Registry
from alignbench.verify.report import CheckReport

PRETRAINABLE = {
    "llamagen-tiny": "alignbench.pretrain.llamagen_tiny:pretrain",
    "shapes-tiny": "alignbench.pretrain.shapes_tiny:pretrain",
}


def fetch(
    name: str = typer.Argument(help="Model, asset, evaluator or protocol whose files to download."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be downloaded and stop."),
) -> None:
    """Download weights and other files: pinned, checked, resumable. Licences and sizes come first."""
    from alignbench.hub.fetch import fetch_files

    progress = Progress()
    files = _wanted(Registry.default(), name)
    if not files:
        progress.say(f"{name} needs no files from outside")
    for item in fetch_files(files, dry_run=dry_run, say=progress.say):
        put(f"{item.name}  {item.path}  ({item.action})")


def _wanted(registry: Registry, name: str) -> list[FileStatus]:
    """Locate the files that a name stands for.

    A protocol stands for its evaluators' assets, its reference statistics and its prompts, a model for the
    text encoder it reads with.

    Raises:
        UserError: nothing that could be downloaded has this name.
    """
    kinds = ("models", "assets", "evaluators", "protocols")
    meant = [kind for kind in kinds if name in registry.locations[kind]]
    if not meant:
        names = [other for kind in kinds for other in registry.locations[kind]]
        raise UserError(
            f"no model, asset, evaluator or protocol named {name!r}.{suggest(name, names)} "
            "See: alignbench list"
        )
    assets = [name] if "assets" in meant else []
    weights: list[FileStatus] = []
    if "evaluators" in meant:
        assets += registry.evaluator(name).assets
    if "protocols" in meant:
        assets += assets_of(registry, registry.protocol(name))
    if "models" in meant:
        card = registry.model(name)
        assets += [card.text.asset] if card.text and card.text.asset else []
        weights += locate_weights(name, card).values()
    return [locate_asset(asset, registry.asset(asset)) for asset in dict.fromkeys(assets)] + weights


def pretrain(
    model: str = typer.Argument(help="llamagen-tiny or shapes-tiny"),
    out: Path = typer.Option(Path("pretrained"), "--out", help="Folder for the weights and manifest.json."),
    seed: int = typer.Option(0, "--seed"),
) -> None:
    """Make the shipped weights of a tiny model again from scratch."""
    from alignbench.registry.lookup import import_target

    if model not in PRETRAINABLE:
        raise UserError(
            f"{model!r} cannot be pretrained here.{suggest(model, PRETRAINABLE)}",
            fix=f"alignbench pretrain {next(iter(PRETRAINABLE))}",
        )
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):  # rather than minutes later
        raise UserError(f"{out} cannot be written", fix="choose another folder with --out")
    progress = Progress()

    def report(stage: str, done: int, total: int, note: str) -> None:
        if done == total or done % max(total // 10, 1) == 0:
            progress.say(" · ".join(filter(None, (f"{stage} {done}/{total}", note))))

    manifest = import_target(PRETRAINABLE[model])(out, seed=seed, progress=report)
    print_json(manifest)


def verify_golden(
    *,
    golden: Path = typer.Option(
        ..., "--golden", help="Folder of numbers made by an official implementation."
    ),
    device: str = typer.Option("cpu", "--device", help="Where to compute, e.g. cuda."),
    as_json: Json = False,
    failures: bool = typer.Option(False, "--failures", help="Print only what does not agree."),
) -> None:
    """Reproduce golden numbers: name, error, tolerance and verdict of every tensor; exit 1 on any miss."""
    from alignbench.verify.golden import verify

    reports = verify(golden, device=device)
    if as_json:
        print_json({name: [vars(row) for row in report.checks] for name, report in reports.items()})
    else:
        for name, report in reports.items():
            _print_report(name, report, failures)
    bad = [name for name, report in reports.items() if not report.ok]
    if bad:
        raise UserError(f"{', '.join(bad)}: not reproduced", exit_code=EXIT_FAILED)


def _print_report(name: str, report: CheckReport, failures: bool) -> None:
    """Name, largest error, tolerance, verdict and note in aligned columns; below them counts of verdicts."""
    console = Console()
    console.print(name, style="bold", markup=False)
    for row in report.checks:
        if not (failures and row.verdict in ("ok", "info")):
            numbers = ["-" if value is None else f"{value:.2e}" for value in (row.error, row.tolerance)]
            line = f"{row.name:<72} {numbers[0]:>9} {numbers[1]:>9}  {row.verdict:<7} {row.note}".rstrip()
            put(line)
    counts = Counter(row.verdict for row in report.checks)
    text = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    console.print(f"{name}: {text}", highlight=False, markup=False)
