# SPDX-License-Identifier: Apache-2.0
"""The status page as markup: what it says, nothing gets into it, nothing comes from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from detector.config.model import Config
from detector.publish.page.html import Markup, element
from detector.publish.page.labels import ago
from detector.publish.page.render import render
from detector.publish.snapshot import About
from tests.unit.publish.page.moments import MOMENTS, as_ipv6, observed, view

VOID = {"link", "meta"}


class _Outline(HTMLParser):
    """Headings, ids, pictures and addresses of a page; complains of elements that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.referred: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        there = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append(tag)
        if tag == "svg":
            self.pictures.append(there)
        self.ids += [one for one in [there.get("id")] if one]
        self.addresses += [one for name in ("href", "src") if (one := there.get(name))]
        self.referred += [one for name in ("aria-labelledby", "aria-describedby") if (one := there.get(name))]
        assert not [name for name in there if name.startswith("on") or name == "style"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(page: str) -> _Outline:
    """The outline of a page."""
    found = _Outline()
    found.feed(page)
    assert not found.open
    return found


@pytest.mark.parametrize("name", MOMENTS)
def test_every_moment_makes_a_sound_page(name: str) -> None:
    """Elements are closed, ids unique, headings go down by one, pictures have names."""
    page = outline(render(MOMENTS[name]()))
    assert len(page.ids) == len(set(page.ids))
    assert set(page.referred) <= set(page.ids)
    levels = [int(heading[1]) for heading in page.headings]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for picture in page.pictures:
        named = picture.get("role") == "img" and picture.get("aria-labelledby")
        assert named or picture.get("aria-hidden") == "true"


@pytest.mark.parametrize("name", MOMENTS)
def test_nothing_is_loaded_from_elsewhere(name: str) -> None:
    """Every address is on the same server; there is no script, frame, font or imported style."""
    page = render(MOMENTS[name]())
    assert all(re.match(r"/(?!/)|#|data:image/svg", address) for address in outline(page).addresses)
    assert not re.search(r"<script|<iframe|<img|@import|url\(|javascript:", page)


def test_the_verdict_and_its_reason_are_in_words() -> None:
    """The headline, the report's paragraph, what decides and since when."""
    seen = view(observed("persistent"), as_ipv6(observed("random", pool=250)))
    page = render(seen)
    assert seen.now.report
    for text in (
        "Leaking: anybody can compute which exit address a peer gets",
        "kernel_persistent",
        "4 h 15 min ago",
        "/runbooks/ExitprintMappingPredictable.md",
    ):
        assert text in page
    assert page.count(seen.now.report.why) == 1


def test_trouble_is_said_before_anything_else() -> None:
    """A late report, what is waited for, lost flows and a full table stand out, with what to read."""
    page = render(MOMENTS["broken"]())
    assert page.index("What follows is old: no report for 99 s.") < page.index('id="verdict"')
    for text in ("3,000 (pairs", "1 not understood", "131,000 of 131,072", "ExitprintEventsLost.md"):
        assert text in page
    assert "Waiting: no WireGuard interface is there." in render(MOMENTS["nothing_yet"]())


def test_markup_in_names_stays_text() -> None:
    """A relay's name that is markup is shown, not obeyed."""
    seen = view(observed("random"))
    named = replace(seen, about=About(Config(relay="<script>alert('\"')</script>"), "netfilter"))
    page = render(named)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_elements_escape_what_is_not_markup() -> None:
    """Text and attributes are escaped, markup is not, None is left out."""
    made = element("a", "<&>", Markup("<b></b>"), None, href='"<', class_="x", title=None, aria_label=1.5)
    assert made == '<a href="&quot;&lt;" class="x" aria-label="1.5">&lt;&amp;&gt;<b></b></a>'


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (59.9, "59 s"), (3600, "1 h"), (3_700, "1 h 1 min"), (200_000, "2 d 7 h")],
)
def test_spans_of_time_are_short(seconds: float, text: str) -> None:
    """Two units at most."""
    assert ago(seconds) == text


def test_a_clock_far_beyond_is_shown() -> None:
    """The year 9948 and later: a page all the same."""
    for clock in (251_758_800_000.0, 1e15):
        view = MOMENTS["predictable"]()
        now = replace(view.now, since=clock, made=clock, epoch_since=clock)
        assert "</html>" in render(replace(view, now=now, clock=clock + 90))
        assert "</html>" in render(replace(view, clock=clock))
