"""`alignbench fetch`, `pretrain` and `verify`: getting weights, making them, checking the arithmetic."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import typer
from rich.console import Console

from alignbench.cli.common import folded, print_json, put
from alignbench.cli.options import Json, card_names, one_of
from alignbench.config import settings
from alignbench.config.plan import files_of
from alignbench.errors import EXIT_FAILED, UserError, suggest
from alignbench.hub.locate import (
    FileStatus,
    assets_of,
    locate_asset,
    locate_reward_files,
    locate_weights,
)
from alignbench.progress import Progress
from alignbench.registry import reward_spec
from alignbench.registry.lookup import Registry
from alignbench.verify.report import CheckReport

PRETRAINABLE = {
    "llamagen-tiny": "alignbench.pretrain.llamagen_tiny:pretrain",
    "shapes-tiny": "alignbench.pretrain.shapes_tiny:pretrain",
}


KINDS = ("models", "assets", "evaluators", "protocols", "rewards", "recipes")
"""Whose names `fetch` takes."""
FETCHED = card_names(*KINDS)


def fetch(
    names: list[str] = typer.Argument(
        help="Whose files to download: recipes (all that a run needs), models, protocols, rewards, "
        "evaluators, assets.",
        autocompletion=FETCHED,
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be downloaded and stop."),
) -> None:
    """Download weights and other files: pinned, checked, resumable. Licences and sizes come first."""
    from alignbench.hub.fetch import fetch_files

    progress = Progress()
    registry = Registry.default()
    files: dict[tuple[str, str], FileStatus] = {}
    for name in names:
        wanted = _wanted(registry, name)
        files |= {(file.owner, file.option): file for file in wanted}
        if not wanted:
            progress.say(f"{name} needs no files from outside")
    for item in fetch_files(list(files.values()), dry_run=dry_run, say=progress.say):
        put(f"{item.name}  {item.path}  ({item.action})")


def _wanted(registry: Registry, name: str) -> list[FileStatus]:
    """Locate the files that a name stands for, in each kind of card that has it.

    A recipe stands for its run on its first model, a protocol for its evaluators' assets, its reference
    statistics and its prompts, a model for the text encoder it reads with too.

    Raises:
        UserError: nothing that could be downloaded has this name.
    """
    meant = [kind for kind in KINDS if name in registry.locations[kind]]
    if not meant:
        names = [other for kind in KINDS for other in registry.locations[kind]]
        raise UserError(
            f"no recipe, model, protocol, reward, evaluator or asset named {name!r}.{suggest(name, names)} "
            "See: alignbench list"
        )
    assets = [name] if "assets" in meant else []
    files: list[FileStatus] = []
    if "evaluators" in meant:
        assets += registry.evaluator(name).assets
    if "protocols" in meant:
        assets += assets_of(registry, registry.protocol(name))
    if "models" in meant:
        card = registry.model(name)
        assets += [card.text.asset] if card.text and card.text.asset else []
        files += locate_weights(name, card).values()
    if "rewards" in meant:  # which find what the asset of their name holds
        found = registry.asset(name).repo if "assets" in meant else None
        needed = locate_reward_files(registry, reward_spec.resolve(name, registry))
        files += [file for file in needed if file.card.repo != found]
    if "recipes" in meant:
        recipe = registry.recipe(name)
        config = settings.resolve(registry, method=recipe.method, model=recipe.models[0], recipe=name)
        files += files_of(registry, config)
    return [locate_asset(asset, registry.asset(asset)) for asset in dict.fromkeys(assets)] + files


def pretrain(
    model: str = typer.Argument(help="llamagen-tiny or shapes-tiny", autocompletion=one_of(PRETRAINABLE)),
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
    """Verdict, largest error, tolerance and name in columns, the note below; then counts."""
    console = Console()
    console.print(name, style="bold", markup=False)
    for row in report.checks:
        if not (failures and row.verdict in ("ok", "info")):
            numbers = ["-" if value is None else f"{value:.2e}" for value in (row.error, row.tolerance)]
            put(f"{row.verdict:<7} {numbers[0]:>9} {numbers[1]:>9}  {row.name}")
            put(*folded(row.note, " " * 29))
    counts = Counter(row.verdict for row in report.checks)
    text = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    console.print(f"{name}: {text}", highlight=False, markup=False)
