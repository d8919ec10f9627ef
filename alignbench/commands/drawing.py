"""Pictures of runs. Imports matplotlib when a picture is drawn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from alignbench.errors import UserError, suggest
from alignbench.figures.choice import ImageChoice
from alignbench.registry.lookup import Registry

if TYPE_CHECKING:
    from alignbench.figures.picture import Picture
    from alignbench.figures.source import Run
    from alignbench.leaderboard.table import Table
    from alignbench.record import Tell
    from alignbench.runs.figure_images import Gallery

KINDS = {
    "curves": "reward, its parts, losses, entropy, gradient norm and clipping over the steps",
    "tradeoff": "metrics against each other over the sampling settings",
    "tasks": "the tasks behind an overall score",
    "options": "metrics over an option that the runs differ in",
    "samples": "the same image numbers from the base and each configuration, and real images",
    "embedding": "features of real and generated images: PCA with densities, t-SNE",
    "sharpness": "power over spatial frequency, energy of the Laplacian: over-smoothing",
    "classes": "share of each class's images that a classifier recognises",
}
"""{kind of picture: what it shows}."""


def figures(
    runs: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "figures",
    *,
    kinds: Sequence[str] = (),
    setting: str = "",
    metrics: Sequence[str] = (),
    images: ImageChoice | None = None,
    tell: Tell | None = None,
) -> list[Path]:
    """Draw pictures of runs: PNG, the numbers as CSV, and `figures.md` with captions; return the files.

    Args:
        runs: run folders, record files, or folders of either.
        kinds: of `KINDS`; default: all that these runs allow, the others are named in `figures.md`.
        setting: name of a sampling setting, for pictures of one; default: the protocol's first.
        metrics: for pictures over an option; default: the ranking metric and the next three.
        images: which images are drawn for pictures of them, at `setting`; default: see there.
        tell: called for a record that cannot be read, which is left out; None: it is an error.

    Raises:
        UserError: no such kind, no run, or a picture that was asked for cannot be drawn.
        RunFailed: the folder cannot be written.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(
                f"no kind of picture {kind!r}.{suggest(kind, KINDS)}", fix=f"one of {', '.join(KINDS)}"
            )
    from alignbench.figures import picture, source

    found = source.find(map(Path, runs), tell)
    of_images = _of_images(found, replace(images or ImageChoice(), setting=setting))
    drawn: list[Picture] = []
    absent: dict[str, str] = {}
    for kind in kinds or KINDS:
        pictures = (
            [(kind, of_images[kind])] if kind in of_images else _pictures(kind, found, setting, metrics)
        )
        for name, draw in pictures:
            try:
                drawn.append(draw(name))
            except (source.NotDrawnError, UserError) as error:
                if kinds and isinstance(error, UserError):
                    raise
                absent[name] = str(error)
        if kinds and not any(made.name.startswith(kind) for made in drawn):
            raise _none(absent)
    if not drawn:
        raise _none(absent)
    return picture.write(drawn, absent, Path(out))


def _none(absent: Mapping[str, str]) -> UserError:
    reasons = "; ".join(f"{name} cannot be drawn: {reason}" for name, reason in absent.items())
    return UserError(reasons, fix="name other runs, or other kinds with --kind")


def _pictures(
    kind: str, runs: Sequence[Run], setting: str, metrics: Sequence[str]
) -> list[tuple[str, Callable[[str], Picture]]]:
    """Return (file name, function that draws it) of every picture of a kind: one, or one for each table."""
    from alignbench.figures import bars, curves, options, tradeoff

    if kind == "curves":
        return [(kind, lambda name: curves.curves(runs, name))]
    draw: dict[str, Callable[[Table, str], Picture]] = {
        "tradeoff": tradeoff.tradeoff,
        "tasks": lambda table, name: bars.tasks(table, name, setting),
        "options": lambda table, name: options.options(runs, table, name, metrics=metrics, setting=setting),
    }
    tables = _tables(runs)
    names = [kind if len(tables) == 1 else f"{kind}-{_name(table)}" for table in tables]
    return [(name, partial(draw[kind], table)) for name, table in zip(names, tables, strict=True)]


def _of_images(runs: Sequence[Run], choice: ImageChoice) -> dict[str, Callable[[str], Picture]]:
    """Return {kind: function that draws it} of pictures of images, which are drawn once for all of them."""
    from alignbench.figures import bars, embedding, samples, sharpness, source

    @cache
    def gallery() -> Gallery:
        from alignbench.runs.figure_images import Gallery  # torch

        return Gallery(runs, Registry.default(), choice)

    def embedded(name: str) -> Picture:
        evaluator, column, rows = gallery().rows(embedding.COLUMNS, "keeps features")
        features = {label: row[column] for label, row in rows.items()}
        return embedding.embedding(features, f"{gallery().what()} Features: {column} of {evaluator}.", name)

    def classes(name: str) -> Picture:
        evaluator, _, rows = gallery().rows(["correct"], "recognises classes")
        if any("label" not in row for row in rows.values()):
            raise source.NotDrawnError(f"{evaluator} knows no classes")
        judged = {label: (row["label"], row["correct"]) for label, row in rows.items()}
        what = f"{gallery().what()} Recognised by {evaluator}."
        return bars.classes(judged, gallery().titles(), what, name)

    return {
        "samples": lambda name: samples.samples(gallery().sheet(), name),
        "embedding": embedded,
        "sharpness": lambda name: sharpness.sharpness(gallery().pixels(), gallery().what(), name),
        "classes": classes,
    }


def _tables(runs: Sequence[Run]) -> Sequence[Table]:
    from alignbench.leaderboard.board import build

    registry = Registry.default()
    records = [run.record for run in runs]
    return build(records, registry.metric_facts(), assets=registry.asset_cards(), sift=False).tables


def _name(table: Table) -> str:
    return "-".join(filter(None, (table.protocol.name, table.model_name, table.label.replace(" ", "-"))))
