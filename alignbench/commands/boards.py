"""Leaderboard folders and reports: pages, their pictures, and pages for a browser. Imports no torch."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.errors import RunFailed, UserError
from alignbench.files import write_atomic
from alignbench.progress import Progress
from alignbench.registry.lookup import Registry
from alignbench.registry.plugins import load_registry

if TYPE_CHECKING:
    from alignbench.leaderboard.table import Board
    from alignbench.record import Tell

SAMPLES = "samples"
"""Folder of the sample grids, `RUN.png`, or `RUN.jpg` of those that had to be made smaller."""
WIDTH = 640
"""Of a sample grid in pixels; wider ones are made smaller, so that the page can be mailed."""


def leaderboard(
    runs: Iterable[str | os.PathLike[str]],
    out: Path,
    *,
    html: bool = False,
    plugins: Sequence[Any] = (),
    tell: Tell | None = None,
) -> list[Path]:
    """Add runs to a leaderboard folder, make its pages again and draw the pictures of pages that changed.

    Args:
        runs: run folders, record files, or folders of either.
        html: also make `index.html`; one that is there is always made again.
        plugins: what brings the cards of metrics that are not built in.
        tell: called for a record of `runs` that cannot be read, which is left out; None: it is an error.

    Returns:
        The files that changed or are new.

    Raises:
        UserError: a path that holds no record, or a broken record, there or in `out`.
        RunFailed: the folder cannot be written.
    """
    from alignbench.html.board import FILE_NAME, page
    from alignbench.leaderboard import board, markdown

    registry = load_registry(plugins)
    facts, assets, rewards = registry.metric_facts(), registry.asset_cards(), registry.reward_cards()
    paths = [Path(run) for run in runs]
    records = board.collect(paths, tell)
    changed = board.write(records, out, facts, registry.published_cards(), assets, rewards)
    made = board.build(board.stored(out), facts, assets=assets, rewards=rewards)
    for name, table in markdown.pictures(made).items():
        if out / markdown.page_name(table) in changed or not (out / name).is_file():
            from alignbench.figures.tradeoff import tradeoff

            changed.append(_put(out / name, tradeoff(table, Path(name).stem).png()))
    if html or (out / FILE_NAME).is_file():
        changed += _take_grids(board.record_files(paths), made, out)
        text = page(made, _grids(out))
        if not (out / FILE_NAME).is_file() or (out / FILE_NAME).read_bytes() != text.encode():
            changed.append(_put(out / FILE_NAME, text))
    return changed


def report(run: str | os.PathLike[str], *, html: bool = False) -> list[Path]:
    """Write a run's report and its pictures again, from its record and log; return the files.

    Args:
        html: also `report.html`, one file for a browser with all pictures and the whole configuration.

    Raises:
        UserError: no run folder, or a broken record.
        RunFailed: the folder cannot be written.
    """
    from alignbench.record import read
    from alignbench.runs.report_files import write_page, write_report

    folder = Path(run)
    record = read(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is a record alone", fix="name the run folder")
    try:
        files = write_report(record, folder, Registry.default(), Progress().say)
        return [*files, *([write_page(record, folder)] if html else [])]
    except OSError as error:
        raise RunFailed(f"{folder} cannot be written: {error.strerror or error}") from error


def check(out: Path, *, plugins: Sequence[Any] = ()) -> list[str]:
    """Make a leaderboard folder again from its records and compare; return `file: what is wrong`.

    Raises:
        UserError: no such folder, or a broken record in it.
    """
    from alignbench.html.board import FILE_NAME, page
    from alignbench.leaderboard import board

    registry = load_registry(plugins)
    facts, assets, rewards = registry.metric_facts(), registry.asset_cards(), registry.reward_cards()
    wrong = board.check(out, facts, registry.published_cards(), assets, rewards)
    if (out / FILE_NAME).is_file():
        made = board.build(board.stored(out), facts, assets=assets, rewards=rewards)
        if (out / FILE_NAME).read_bytes() != page(made, _grids(out)).encode():
            wrong.append(f"{FILE_NAME}: differs from what its records give")
    return wrong


def _put(path: Path, content: str | bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise RunFailed(f"{path} cannot be written: {error.strerror or error}") from error
    return path


# --- sample grids ---------------------------------------------------------------------------------


def _take_grids(records: Iterable[Path], board: Board, out: Path) -> list[Path]:
    """Keep `samples.png` of the first run of every row, where its folder is at hand and none is kept."""
    from alignbench.record import FILE_NAME, read_all

    first = {row.runs[0] for table in board.tables for row in table.rows if row.runs}
    taken = []
    for file, record in read_all(records, lambda broken: None):  # they were told of before
        grid = file.with_name("samples.png")
        if file.name == FILE_NAME and grid.is_file() and record.id in first:
            path, content = _small(grid, out / SAMPLES / record.id)
            if not path.is_file() or path.read_bytes() != content:
                taken.append(_put(path, content))
    return taken


def _small(grid: Path, stem: Path) -> tuple[Path, bytes]:
    from PIL import Image

    with Image.open(grid) as image:
        if image.width <= WIDTH:
            return stem.with_name(f"{stem.name}.png"), grid.read_bytes()
        size = WIDTH, round(image.height * WIDTH / image.width)
        buffer = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    return stem.with_name(f"{stem.name}.jpg"), buffer.getvalue()


def _grids(out: Path) -> dict[str, str]:
    """Return {run: its sample grid as an address that a page may hold}."""
    from alignbench.html.render import data_uri

    kinds = {".png": "image/png", ".jpg": "image/jpeg"}
    files = sorted(path for path in (out / SAMPLES).glob("*") if path.suffix in kinds)
    return {path.stem: data_uri(path.read_bytes(), kinds[path.suffix]) for path in files}
