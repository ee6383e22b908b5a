# SPDX-License-Identifier: Apache-2.0
"""The pictures of the status page: inline SVG whose text keeps its size while the bars follow the width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detector.counts.load import Column, Load
from detector.publish.page.html import Markup, element, join

_ROW = 70
_PLOT = 150
_TOP = 22
_IDLE = 2  # pixels of a column that stands for nothing
_WITHHELD = 12  # of a column of which nothing is told


@dataclass(frozen=True, slots=True)
class Share:
    """A share of something, beside the share that chance alone gives.

    Attributes:
        label: what it is a share of.
        value, chance: 0 to 1.
        strong: it is beyond chance for sure.
    """

    label: str
    value: float
    chance: float
    strong: bool = False


def percent(share: float) -> str:
    """A share for people: whole percents, finer ones where they are small."""
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"


def shares_picture(name: str, title: str, shares: Sequence[Share]) -> Markup:
    """Bars with a mark where chance is; `name` makes the ids of title and description unique."""
    spoken = "; ".join(f"{one.label}: {percent(one.value)}, chance {percent(one.chance)}" for one in shares)
    rows = [_share_row(one, index * _ROW) for index, one in enumerate(shares)]
    return _picture(name, title, f"{spoken}.", len(shares) * _ROW - 16, *rows)


def _share_row(share: Share, top: int) -> Markup:
    value, chance = _clipped(share.value), _clipped(share.chance)
    kind = "bar strong" if share.strong else "bar"
    bar = top + 24
    return join(
        element("text", share.label, x=0, y=top + 14),
        element("text", percent(share.value), class_="number", x="100%", y=top + 14, text_anchor="end"),
        element("rect", class_="track", x=0, y=bar, width="100%", height=10, rx=5),
        element("rect", class_=kind, x=0, y=bar, width=f"{100 * value:.4g}%", height=10, rx=5),
        element(
            "line", class_="chance", x1=_at(chance), x2=_at(chance), y1=bar - 4, y2=bar + 14, stroke_width=2
        ),
        element(
            "text", f"chance {percent(share.chance)}", class_="axis", x="100%", y=top + 50, text_anchor="end"
        ),
    )


def _clipped(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _at(share: float) -> str:
    """Where a mark stands that must not be cut in half at the edges."""
    return f"{0.4 + 99.2 * share:.4g}%"


def load_picture(name: str, title: str, load: Load, floor: int) -> Markup:
    """One column for each exit, or for some that are beside each other, by address."""
    means = [column.flows / column.exits for column in load.columns]
    highest = max(means, default=0.0) or 1.0
    even = load.flows / load.listed
    spoken = (
        f"{load.in_use:,} exits carried about {load.flows:,} flows; "
        f"the busiest carried {percent(load.busiest)}, "
        f"an even share would be {percent(1 / load.listed)}. {load.crowded_less:,} exits have fewer than "
        f"{floor:,} peers."
    )
    line = _TOP + _PLOT * (1 - min(even / highest, 1.0))
    bottom = _TOP + _PLOT
    first, last = load.columns[0].first, load.columns[-1].last
    return _picture(
        name,
        title,
        spoken,
        bottom + 40,
        element("text", f"highest: about {_counted(highest)} flows", x=0, y=12, class_="axis"),
        *(_column(column, index, len(means), highest, floor) for index, column in enumerate(load.columns)),
        element("line", class_="base", x1=0, x2="100%", y1=bottom, y2=bottom),
        element("line", class_="even", x1=0, x2="100%", y1=line, y2=line),
        element("text", str(first), x=0, y=bottom + 18, class_="axis"),
        element("text", f"to {last}", x="100%", y=bottom + 34, text_anchor="end", class_="axis"),
    )


def _column(column: Column, index: int, count: int, highest: float, floor: int) -> Markup:
    mean = column.flows / column.exits
    height = max(_PLOT * mean / highest, _WITHHELD if column.withheld else _IDLE)
    step = 100 / count
    kind = "few" if column.withheld or 0 < column.peers < floor else "exit" if column.flows else "idle"
    counts = f"about {_counted(mean)} flows, {column.peers:,} peers"
    told = f"fewer than {floor:,} peers, so not told" if column.withheld else counts
    return element(
        "rect",
        element("title", f"{column_name(column)}: {told}"),
        class_=kind,
        x=f"{index * step + 0.09 * step:.5g}%",
        y=_TOP + _PLOT - height,
        width=f"{0.82 * step:.5g}%",
        height=height,
        rx=1,
    )


def column_name(column: Column) -> str:
    """The exits that a column stands for."""
    return str(column.first) if column.exits == 1 else f"{column.first} to {column.last}"


def _counted(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def _picture(name: str, title: str, spoken: str, height: int, *parts: Markup) -> Markup:
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", spoken, id=f"{name}-text"),
        *parts,
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-text",
        width="100%",
        height=height,
    )


_SHAPES = {
    "critical": ("M9 2h10l7 7v10l-7 7H9l-7-7V9z", "!"),
    "warning": ("M14 2 27 25H1z", "!"),
    "info": ("M14 1a13 13 0 1 0 0 26 13 13 0 0 0 0-26z", "i"),
    "ok": ("M14 1a13 13 0 1 0 0 26 13 13 0 0 0 0-26z", "✓"),
    "unknown": ("M14 1a13 13 0 1 0 0 26 13 13 0 0 0 0-26z", "?"),
}


def sign(severity: str, size: int = 28) -> Markup:
    """The shape that stands for a severity; words beside it say the same, so it is hidden from readers."""
    path, glyph = _SHAPES[severity]
    lower = 22 if severity == "warning" else 20
    return element(
        "svg",
        element("path", d=path, class_="shape"),
        element("text", glyph, x=14, y=lower, text_anchor="middle", class_="glyph"),
        class_=f"sign {severity}",
        viewBox="0 0 28 28",
        width=size,
        height=size,
        aria_hidden="true",
    )
