"""A headless Chromium for pages: what it complained about, what it asked the network for, how it looks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

REQUIRED = "ALIGNBENCH_BROWSER"
"""Where this variable is set, a machine without a browser fails instead of skipping."""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars",
    "--force-prefers-no-reduced-motion",
)  # fmt: skip

CONTRAST = """
const luminance = (c) => c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const c = parse(getComputedStyle(node).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c.slice(0, 3);
  }
  return [255, 255, 255];
};
const bad = [];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !node.checkVisibility() || node.closest("script, style")) continue;
  const style = getComputedStyle(node), size = parseFloat(style.fontSize);
  const shown = node instanceof SVGElement ? style.fill : style.color;
  const pair = [luminance(parse(shown).slice(0, 3)), luminance(behind(node))].sort((a, b) => b - a);
  const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
  const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  const said = `${node.tagName} ${ratio.toFixed(2)} ${node.textContent.slice(0, 40)}`;
  if (ratio < (large ? 3 : 4.5)) bad.push(said);
}
return bad;
"""
"""WCAG 2 contrast AA of every text that is shown."""


class Browser:
    """One Chromium; `driver` is Selenium's."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Open a file at a width in CSS pixels, in a colour scheme."""
        driver = self.driver
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.complaints(), self.requests()  # of the page before
        driver.get(page.resolve().as_uri())

    def script(self, code: str, *values: object) -> object:
        return self.driver.execute_script(code, *values)

    def wait(self, code: str) -> None:
        """Wait until a script returns something true."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 10).until(lambda driver: driver.execute_script(code))

    def keys(self, *keys: str) -> None:
        """Press keys where the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def complaints(self) -> list[str]:
        """What was written to the console."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for, without `data:` and the file itself."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        urls = [x["request"]["url"] for x in asked if x.get("type") != "Document"]
        return [url for url in urls if not url.startswith("data:")]

    def low_contrast(self) -> list[str]:
        """Texts below WCAG's AA."""
        return cast(list[str], self.script(CONTRAST))

    def overflow(self) -> int:
        """By how many CSS pixels the page is wider than the window."""
        code = "const d = document.documentElement; return d.scrollWidth - d.clientWidth"
        return cast(int, self.script(code))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Debian's or another Chromium with its ChromeDriver; skips where there is none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)("no chromium with chromedriver here")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield Browser(opened)
    finally:
        opened.quit()
