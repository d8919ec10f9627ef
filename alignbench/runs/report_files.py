"""`report.md` with its pictures, and the page for a browser, in a run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alignbench.files import write_atomic
from alignbench.leaderboard.report import report_markdown
from alignbench.record import RunRecord
from alignbench.registry.lookup import Registry

TEXT = "report.md"


def write_report(
    record: RunRecord, folder: Path, registry: Registry, say: Callable[[str], None]
) -> list[Path]:
    """Write the report of a run and draw its pictures; return the files, the text first.

    What could not be drawn is said; a run does not fail for a picture.

    Raises:
        OSError: the folder cannot be written.
    """
    facts, assets = registry.metric_facts(), registry.asset_cards()
    try:
        from alignbench.figures.of_run import pictures  # matplotlib takes a second

        drawn = pictures(record, folder, facts, assets)
    except Exception as error:
        say(f"the report has no pictures: {type(error).__name__}: {error}")
        drawn = []
    for picture in drawn:
        write_atomic(folder / f"{picture.name}.png", picture.png())
    captions = {f"{picture.name}.png": picture.caption for picture in drawn}
    write_atomic(folder / TEXT, report_markdown(record, facts, assets, captions))
    return [folder / TEXT, *(folder / name for name in captions)]


def write_page(record: RunRecord, folder: Path) -> Path:
    """Write the report that is in the folder as one page; return its file.

    Raises:
        OSError: the folder cannot be read or written.
    """
    from alignbench.html.render import data_uri
    from alignbench.html.report import FILE_NAME, page

    pictures = {path.name: data_uri(path.read_bytes()) for path in sorted(folder.glob("*.png"))}
    write_atomic(folder / FILE_NAME, page(record, (folder / TEXT).read_text("utf-8"), pictures))
    return folder / FILE_NAME
