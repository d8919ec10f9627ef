"""The page of a sample log in a browser: switching, the keyboard, hostile texts, narrow and dark screens."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignbench.evaluation.shown import encoded, fit
from alignbench.html import samples
from tests.html.conftest import Browser

HOSTILE = "</script><script>document.title='stolen'</script>\"'{{ 7 * 7 }}\u202e<b>" + "x" * 200
pytestmark = pytest.mark.browser


def one_set(subject: str, setting: str, shift: float, side: int = 8) -> dict[str, Any]:
    """Twelve pictures; picture i scores i + shift by `up`, and so by `down`, of which less is better."""
    pictures = [
        {
            "id": i, "seed": 0, "asked": f"{HOSTILE} {i}", "group": f"class {i % 3}",
            "src": encoded(np.full((side, side, 3), 20 * i, np.uint8)), "original": None,
            "small": True, "values": [i + shift, i + shift, f"{HOSTILE}\nsecond line", None],
        }
        for i in range(12)
    ]  # fmt: skip
    up, down = list(range(12)), list(range(11, -1, -1))
    ends = {"worst": {0: up[:4], 1: down[:4]}, "best": {0: down[:4], 1: up[:4]}}
    named = {"subject": subject, "title": f"{subject} {HOSTILE}", "setting": setting, "files": [HOSTILE]}
    return {**named, **ends, "images": 5000, "pictures": pictures, "tied": {0: (0, 7), 1: (0, 0)}}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sets = [one_set(subject, setting, n) for n, subject in enumerate("ab") for setting in ("T=1", HOSTILE)]
    columns = {
        "up": {"title": "Up", "direction": "higher", "doc": HOSTILE},
        "down": {"title": HOSTILE, "direction": "lower"},
        "word": {"title": "Word"},
        "reward": {"title": "Reward", "direction": "higher"},
    }
    about = {"run": HOSTILE, "protocol": HOSTILE, "digest": "01234567", "wanted": 32, "shown": 4}
    about |= {"left_out": {HOSTILE: HOSTILE}, "small": False}
    path = tmp_path_factory.mktemp("samples") / "index.html"
    path.write_text(samples.page(sets, columns, about), encoding="utf-8")
    return path


def choose(browser: Browser, name: str, text: str) -> str:
    """Choose with the mouse's event; return what the page says."""
    browser.script(
        """const select = document.querySelector(`.filters [name=${arguments[0]}]`);
        select.selectedIndex = [...select.options].findIndex(x => x.text.startsWith(arguments[1]));
        select.dispatchEvent(new Event("change", {bubbles: true}))""",
        name,
        text,
    )
    return str(browser.script("return document.querySelector('.filters output').textContent"))


def shown(browser: Browser, end: str) -> list[str]:
    """The chosen score of every card of a list."""
    found = browser.script(
        "return [...document.querySelectorAll(`#${arguments[0]} .chosen dd`)].map(x => x.textContent)", end
    )
    assert isinstance(found, list)
    return found


def test_subject_setting_score_and_class_can_be_chosen(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.script("return document.querySelector('[name=score]').value") == "1"  # `up` has ties
    said = choose(browser, "score", "Up")
    assert said.startswith("The 4 worst and 4 best of 5,000 images by Up, higher is better. 7 more")
    assert shown(browser, "worst") == ["0", "1", "2", "3"] and shown(browser, "best") == [
        "11",
        "10",
        "9",
        "8",
    ]
    choose(browser, "subject", "b")
    assert shown(browser, "worst") == ["1", "2", "3", "4"]
    choose(browser, "setting", "</script>")
    assert choose(browser, "score", "</script>").endswith("lower is better.")
    assert shown(browser, "worst") == ["12", "11", "10", "9"]
    assert choose(browser, "group", "class 2").startswith("The 2 worst and 1 best of 5,000")
    assert shown(browser, "worst") == ["12", "9"] and shown(browser, "best") == ["3"]
    assert choose(browser, "group", "all").startswith("The 4 worst and 4 best")


def test_the_keyboard_is_enough(browser: Browser, page: Path) -> None:
    browser.open(page)
    tab, down, up = "\ue004", "\ue015", "\ue013"
    reached = []
    for _ in range(5):
        browser.keys(tab)
        reached.append(
            browser.script("return document.activeElement.name || document.activeElement.className")
        )
    assert reached == ["skip", "subject", "setting", "score", "group"]
    browser.script("document.querySelector('[name=score]').focus()")
    browser.keys(up)
    assert shown(browser, "worst") == ["0", "1", "2", "3"]
    browser.script("document.querySelector('[name=group]').focus()")
    browser.keys(down)
    assert shown(browser, "worst") == ["0", "3"]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_readable_and_asks_for_nothing(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    browser.script("document.querySelectorAll('details').forEach(x => { x.open = true })")
    assert browser.complaints() == [] and browser.requests() == []
    assert browser.low_contrast() == [] and browser.overflow() == 0
    drawn = browser.script(
        "return [...document.images].map(x => [x.naturalWidth, getComputedStyle(x).imageRendering])"
    )
    assert drawn == [[8, "pixelated"]] * 8


def test_texts_of_others_stay_texts(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.driver.title.startswith("Samples of </script>")
    assert browser.script("return document.scripts.length") == 2
    assert browser.script("return document.querySelectorAll('main b').length") == 0
    text = str(browser.script("return document.body.innerText"))
    assert (
        "{{ 7 * 7 }}" in text
        and "\u202e" not in page.read_text("utf-8")
        and "\\u202e" not in page.read_text("utf-8")
    )
    caption = str(browser.script("return document.querySelector('figcaption').textContent"))
    assert caption == f"{HOSTILE} 11".replace("\u202e", "\ufffd")


def test_large_pictures_are_made_small_and_few() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (384, 384, 3), dtype=np.uint8)
    kind, small = encoded(noise)
    assert kind == "image/jpeg" and Image.open(io.BytesIO(small)).size == (160, 160)
    kind, exact = encoded(noise[:64, :64])
    assert kind == "image/png" and (np.asarray(Image.open(io.BytesIO(exact))) == noise[:64, :64]).all()
    sets = [one_set("a", "T=1", 0)]
    for picture in sets[0]["pictures"]:
        picture["src"] = ("image/png", bytes(2 << 20))
    assert fit(sets, 4) == 1
    assert [picture["id"] for picture in sets[0]["pictures"]] == [0, 11]
    assert sets[0]["worst"] == {0: [0], 1: [1]} and sets[0]["best"] == {0: [1], 1: [0]}
