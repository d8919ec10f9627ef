"""`leaderboard --html` in a browser: sorting, filters, the picture, the keyboard, wide and narrow screens."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignbench.commands import boards
from tests.helpers.command import alignbench
from tests.html.conftest import Browser
from tests.leaderboard.records import FACTS, load

BOARDS = Path(__file__).parents[2] / "leaderboards"
HOSTILE = "</script><script>document.title='stolen'</script>\"'{{ 7 * 7 }}\u202e" + "x" * 300
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed records as a page, with a sample grid of one run."""
    out = tmp_path_factory.mktemp("boards") / "out"
    shutil.copytree(BOARDS / "records", out / "records")
    (out / "samples").mkdir()
    shutil.copy(BOARDS / "samples.png", out / "samples" / "vapi-llamagen-tiny-s0-79503d67.png")
    boards.leaderboard([], out, html=True)
    return out / "index.html"


def column(browser: Browser, title: str, table: int = 0) -> list[str]:
    """The texts of a column of a ranking, from top to bottom, without hidden rows."""
    texts = browser.script(
        """const table = document.querySelectorAll(".head")[arguments[0]];
        const at = [...table.tHead.rows[0].cells].findIndex(x => x.textContent.startsWith(arguments[1]));
        return [...table.tBodies[0].rows].filter(x => !x.hidden).map(x => x.cells[at].textContent.trim())""",
        table,
        title,
    )
    assert isinstance(texts, list)
    return texts


def press_header(browser: Browser, title: str) -> str:
    """Press a column's header with the keyboard; return how it says that it is sorted."""
    browser.script(
        """const heads = [...document.querySelector(".head").tHead.rows[0].cells];
        heads.find(x => x.textContent.startsWith(arguments[0])).querySelector("button").focus()""",
        title,
    )
    browser.keys("\ue007")
    return str(browser.script("return document.activeElement.closest('th').getAttribute('aria-sort')"))


def test_columns_sort_by_value_both_ways(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert column(browser, "rank")[0].startswith("1 (")
    assert press_header(browser, "own best") == "ascending"
    shown = [float(text.split()[0]) for text in column(browser, "own best")]
    assert shown == sorted(shown) and len(shown) == 21
    assert press_header(browser, "own best") == "descending"
    assert [float(text.split()[0]) for text in column(browser, "own best")] == shown[::-1]
    press_header(browser, "training")  # 4.3 s before 11 s, and the base, which has none, last
    spent = [re.sub(" s, CPU", "", text) for text in column(browser, "training")]
    assert spent[-1] == "" and [float(x) for x in spent[:-1]] == sorted(float(x) for x in spent[:-1])
    press_header(browser, "method")
    assert column(browser, "method")[0] == "AR-GRPO"


def choose(browser: Browser, **values: str) -> str:
    for name, value in values.items():
        browser.script(
            """const select = document.querySelector(`.filters [name=${arguments[0]}]`);
            select.value = arguments[1]; select.dispatchEvent(new Event("change", {bubbles: true}))""",
            name,
            value,
        )
    return str(browser.script("return document.querySelector('.filters output').textContent"))


def test_filters_hide_tables_rows_and_points(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert choose(browser) == "2 of 2 tables, 152 rows"
    assert choose(browser, model="LlamaGen-tiny") == "1 of 2 tables, 84 rows"
    assert choose(browser, method="VA-π") == "1 of 2 tables, 8 rows"  # its own and the base's
    assert column(browser, "method") == ["VA-π", "base"]
    assert choose(browser, setting="CFG 2") == "1 of 2 tables, 2 rows"
    points = browser.script("return document.querySelectorAll('#table-1 .frontier [data-point]').length")
    assert points == 2
    assert choose(browser, protocol="Shapes", model="") == "1 of 2 tables, 2 rows"
    assert choose(browser, protocol="Shapes", setting="", method="") == "1 of 2 tables, 68 rows"
    browser.script("document.querySelector('.filters [type=reset]').click()")
    browser.wait("return document.querySelector('.filters output').textContent === '2 of 2 tables, 152 rows'")


PANEL = "return document.querySelector('#table-1 .panel').innerText"


def test_a_point_shows_its_row_its_command_and_its_samples(browser: Browser, page: Path) -> None:
    """With the mouse; and with the keyboard, where the arrows go from point to point."""
    from selenium.webdriver import ActionChains

    browser.open(page)
    points = browser.driver.find_elements("css selector", "#table-1 .frontier [data-point]")
    named = {point.get_attribute("aria-label").split(": ")[0]: point for point in points}
    mark = named["VA-π, T=1"].find_element("css selector", ".mark")
    ActionChains(browser.driver).move_to_element(mark).perform()
    said = str(browser.script(PANEL))
    assert "VA-π" in said and "1.390 ± 0.089" in said and "training 15 s, CPU" in said
    assert "alignbench run --model llamagen-tiny --seed 0 --method vapi" in said
    drawn = browser.script("return document.querySelector('#table-1 .panel img').naturalWidth")
    assert drawn == 422
    browser.script("document.querySelector('#table-1 .frontier [tabindex=\"0\"]').focus()")
    first = browser.script(PANEL)
    browser.keys("\ue014")  # right
    assert browser.script("return document.activeElement.dataset.point") == "1"
    assert browser.script(PANEL) != first
    browser.keys("\ue012", "\ue012")
    assert browser.script("return document.activeElement.dataset.point") == str(len(points) - 1)
    stops = browser.script("return document.querySelectorAll('#table-1 [data-point][tabindex=\"0\"]').length")
    assert stops == 1


def test_a_picked_method_stands_out_and_axes_can_be_chosen(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.driver.find_elements("css selector", "#table-1 .pick")[1].click()
    lines = "return [...document.querySelectorAll('#table-1 .join')].filter(x => !x.matches('.dim')).length"
    assert browser.script(lines) == 2  # it and the base
    picked = browser.script("return document.querySelector('#table-1 [aria-pressed=true]').innerText.trim()")
    assert picked == "GFT"
    browser.script(
        """const select = document.querySelector("#table-1 .axis-x");
        select.value = -1; select.dispatchEvent(new Event("change"))"""
    )
    ticks = browser.script("return [...document.querySelectorAll('#table-1 .tick')].map(x => x.textContent)")
    assert isinstance(ticks, list) and "CFG 2" in ticks


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_readable_and_asks_for_nothing(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    browser.script("document.querySelectorAll('details').forEach(x => { x.open = true })")
    browser.script("document.querySelector('.pick').click()")
    assert browser.complaints() == [] and browser.requests() == []
    assert browser.low_contrast() == []
    assert browser.overflow() == 0
    background = browser.script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(15, 19, 24)" if dark else "rgb(255, 255, 255)")


def test_it_says_what_the_markdown_says(page: Path) -> None:
    """Every sentence, number and command of the pages beside it; the same records give the same bytes."""
    text = " ".join(re.sub(r"<[^>]+>", " ", page.read_text("utf-8")).split())
    for name in ("digits8-v1.md", "shapes-v1.md"):
        for line in (page.parent / name).read_text("utf-8").splitlines():
            for part in re.findall(r"\d\.\d+ ± \d\.\d+|alignbench run [^`]+", line):
                assert part in text, part
    again = page.read_bytes()
    assert boards.leaderboard([page.parent / "records"], page.parent) == []
    assert page.read_bytes() == again and boards.check(page.parent) == []
    page.write_bytes(again.replace(b"AR-GRPO", b"AR-GRPO!"))
    assert boards.check(page.parent) == ["index.html: differs from what its records give"]
    page.write_bytes(again)


def test_texts_of_others_are_shown_and_do_nothing(browser: Browser, tmp_path: Path) -> None:
    from alignbench.html.board import page
    from alignbench.leaderboard.board import build

    records = [load("base"), *(load(f"vapi-{seed}", _hostile) for seed in (0, 1))]
    path = tmp_path / "index.html"
    path.write_text(page(build(records, FACTS), {}), encoding="utf-8")
    for width in (360, 1280):
        browser.open(path, width=width)
        browser.script("document.querySelectorAll('details').forEach(x => { x.open = true })")
        browser.script("[...document.querySelectorAll('.pick')].forEach(x => x.click())")
        assert browser.script("return document.title") == "Leaderboards"
        assert browser.complaints() == [] and browser.overflow() == 0
    shown = str(browser.script("return document.body.innerText"))
    assert "<script>document.title='stolen'</script>" in shown and "{{ 7 * 7 }}" in shown
    assert "\u202e" not in shown


def _hostile(record: dict[str, Any]) -> None:
    record["command"] = HOSTILE
    record["recipe"]["source"] = HOSTILE
    record["changed"] = {"train.lr": {"value": HOSTILE, "origin": HOSTILE}}
    for result in record["results"]:
        result["setting"]["title"] = HOSTILE[:60].replace("<", "").replace(">", "")


def test_a_folder_of_runs_gives_its_grids(tmp_path: Path) -> None:
    """Of the first run of a row; a wide one is made smaller."""
    from PIL import Image

    for name, width in (("vapi-llamagen-tiny-s0-79503d67", 422), ("ntp-llamagen-tiny-s0-1472e9e2", 1300)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        shutil.copy(BOARDS / "records" / f"{name}.json", folder / "run.json")
        Image.new("RGB", (width, 300)).save(folder / "samples.png")
    out = tmp_path / "out"
    done = alignbench("leaderboard", tmp_path / "runs", "--html", "--out", out)
    assert done.returncode == 0 and str(out / "index.html") in done.stdout
    kept = {path.name: Image.open(path).size for path in (out / "samples").iterdir()}
    assert kept == {
        "vapi-llamagen-tiny-s0-79503d67.png": (422, 300),
        "ntp-llamagen-tiny-s0-1472e9e2.jpg": (640, 148),
    }
    assert (out / "index.html").read_text("utf-8").count("data:image/") == 3  # the base shows one of them
    assert alignbench("leaderboard", "--check", "--out", out).returncode == 0
