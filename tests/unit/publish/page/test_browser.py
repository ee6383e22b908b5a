# SPDX-License-Identifier: Apache-2.0
"""The status page in a real browser; what it looked like is kept under build/screenshots."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from detector.config.model import Listen
from detector.publish.exporter import Exposition
from detector.publish.http import server as web
from detector.publish.http.listening import listen
from detector.publish.page.render import View, render
from detector.publish.snapshot import samples
from tests.unit.publish.page.moments import MOMENTS

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENSHOTS = Path(__file__).parents[4] / "build" / "screenshots"
WIDTHS = {"phone": 360, "desktop": 1280}
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="NO chromium and chromedriver here")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium that notes its console and every request."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield made
    made.quit()


class Served:
    """A server whose moment can be chosen.

    Attributes:
        url: of the page.
    """

    def __init__(self) -> None:
        self.view: View = MOMENTS["nothing_yet"]()
        listener = listen(Listen(port=0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        pages = web.Pages(
            Exposition(lambda: (self.view.now, self.view.about), samples),
            lambda: self.view.healthy,
            lambda: self.view.ready,
            lambda _: render(self.view).encode(),
        )
        self.server = web.serve(listener, pages)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """The page, over HTTP with its headers."""
    made = Served()
    yield made
    made.server.shutdown()


def show(browser: webdriver.Chrome, served: Served, name: str, width: int, scheme: str) -> None:
    """Open a moment's page in a window of some width."""
    served.view = MOMENTS[name]()
    scheme_ = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # type: ignore[no-untyped-call]
    browser.get(served.url)


def _requests(browser: webdriver.Chrome) -> list[str]:
    """The addresses of everything that was asked for."""
    entries: list[Any] = browser.get_log("performance")  # type: ignore[no-untyped-call]
    events = [json.loads(entry["message"])["message"] for entry in entries]
    sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
    return [event["params"]["request"]["url"] for event in sent]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
@pytest.mark.parametrize("name", ["predictable", "unlinkable", "broken"])
def test_it_fits_and_is_quiet(
    browser: webdriver.Chrome, served: Served, name: str, device: str, scheme: str
) -> None:
    """Nothing in the console, from elsewhere, or wider than the window; the colours of the scheme."""
    show(browser, served, name, WIDTHS[device], scheme)
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
    assert {one for one in _requests(browser) if not one.startswith(("data:", served.url))} == set()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= WIDTHS[device]
    red = int(
        browser.execute_script("return getComputedStyle(document.body).backgroundColor")[4:].split(",")[0]
    )
    assert (red > 128) is (scheme == "light")
    _keep(browser, f"{name}-{device}-{scheme}")


def _keep(browser: webdriver.Chrome, name: str) -> None:
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


def test_texts_of_pictures_do_not_overlap_on_a_phone(browser: webdriver.Chrome, served: Served) -> None:
    """At 320 pixels, too, each label in a picture is beside the others and inside it."""
    show(browser, served, "predictable", 320, "light")
    clashes = browser.execute_script(
        """
        const clash = [];
        for (const svg of document.querySelectorAll('svg[role=img]')) {
          const boxes = [...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect());
          const around = svg.getBoundingClientRect();
          boxes.forEach((a, i) => {
            if (a.left < around.left - 1 || a.right > around.right + 1) clash.push('outside');
            boxes.slice(i + 1).forEach(b => {
              const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
              const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
              if (x > 0 && y > 4) clash.push('over');
            });
          });
        }
        return clash;
        """
    )
    assert clashes == []


def test_a_screen_reader_hears_what_the_pictures_show(browser: webdriver.Chrome, served: Served) -> None:
    """In the accessibility tree each picture has a name and a description; landmarks have names."""
    show(browser, served, "predictable", 1280, "light")
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    told = [
        (
            node["role"]["value"],
            node.get("name", {}).get("value", ""),
            node.get("description", {}).get("value", ""),
        )
        for node in nodes
        if not node["ignored"]
    ]
    pictures = [(name, text) for role, name, text in told if role in ("img", "image", "graphics-document")]
    assert len(pictures) == 6
    assert all(name and any(letter.isdigit() for letter in text) for name, text in pictures)
    assert ("Exits by load", True) in [(name, "59 exits carried " in text) for name, text in pictures]
    regions = {name for role, name, _ in told if role == "region"}
    assert {"IPv4 predictable", "The detector", "Runbooks"} <= regions
    assert {"main", "banner", "contentinfo", "navigation"} <= {role for role, *_ in told}


def test_everything_can_be_reached_with_the_keyboard(browser: webdriver.Chrome, served: Served) -> None:
    """The first stop leads past the links, each stop is seen, and the numbers open with Enter."""
    show(browser, served, "predictable", 1280, "light")
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    first = browser.switch_to.active_element
    assert (first.text, first.get_attribute("href")) == ("To the verdict", f"{served.url}#verdict")
    assert browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for _ in range(60):
        active = browser.switch_to.active_element
        if active.tag_name == "summary":
            break
        active.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, "details[open] table").is_displayed()
    assert len(browser.find_elements(By.CSS_SELECTOR, "details[open] tbody tr")) == 59


def test_it_needs_no_javascript(browser: webdriver.Chrome, served: Served) -> None:
    """With scripts switched off the page is the same."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, served, "predictable", 1280, "light")
        assert browser.find_element(By.TAG_NAME, "h2").text.startswith("Leaking: anybody can compute")
        assert len(browser.find_elements(By.CSS_SELECTOR, "svg[role=img]")) == 6
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
