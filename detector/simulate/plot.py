# SPDX-License-Identifier: Apache-2.0
"""The picture: what exits on some relays say about those on others, as an SVG written by hand.

Above, linked bits against relays for each mapping, under the bits of all combinations of exits. Below, for
mappings that scale one fraction, every pool cut into its exits over that fraction, with one user's place in
all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from detector.simulate.linkage import After, Linkage

_WIDTH, _LEFT, _RIGHT = 760, 64, 150
_TOP, _HEIGHT, _ROW, _GAP = 48, 260, 16, 70
_FRACTION = 0.437  # the place of the one user who is shown
_COLOURS = ("#c0392b", "#2471a3")
_MOST_STRIPES = 400


def picture(linkages: Sequence[Linkage], pools: Sequence[int]) -> str:
    """The SVG of one mapping, or of two to compare.

    Args:
        linkages: one or two, over the same pools.
        pools: sizes.
    """
    strips = _is_fraction(linkages[0])
    height = _TOP + _HEIGHT + _GAP + (len(pools) * _ROW + 40 if strips else 0)
    body = [*_axes(linkages, pools), *_possible(linkages[0].after)]
    for colour, linkage in zip(_COLOURS, linkages, strict=False):
        body += _linked(linkage, colour, _top_bits(linkages))
    if strips:
        body += _strips(pools, _TOP + _HEIGHT + _GAP)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{height}" fill="white"/>', *body, "</svg>\n"])


def _is_fraction(linkage: Linkage) -> bool:
    return linkage.mapping.name in {"kernel_persistent", "kernel_destination", "seeded_jhash", "linear"}


def _top_bits(linkages: Sequence[Linkage]) -> float:
    return max(math.log2(linkages[0].after[-1].combinations), 1.0)


def _x(relay: int, relays: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * relay / relays


def _y(bits: float, top: float) -> float:
    return _TOP + _HEIGHT * (1 - bits / top)


def _text(x: float, y: float, words: str, anchor: str = "start", colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _line(points: Sequence[tuple[float, float]], colour: str, style: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" {style}/>'


def _axes(linkages: Sequence[Linkage], pools: Sequence[int]) -> Iterator[str]:
    top = _top_bits(linkages)
    names = " and ".join(linkage.mapping.name for linkage in linkages)
    yield _text(
        _LEFT, 22, f"What exits on some of {len(pools)} relays say about those on the others: {names}"
    )
    step = max(1, round(top / 6))
    for bits in range(0, int(top) + 1, step):
        y = _y(bits, top)
        yield f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
        yield _text(_LEFT - 8, y + 4, f"{bits} bits" if bits else "0", "end")
    labels = range(1, len(pools) + 1, -(-len(pools) // 24))
    for relay in labels:
        yield _text(_x(relay, len(pools)), _TOP + _HEIGHT + 18, str(relay), "middle")
    yield _text((_LEFT + _WIDTH - _RIGHT) / 2, _TOP + _HEIGHT + 38, "relays that were seen", "middle")


def _possible(after: Sequence[After]) -> Iterator[str]:
    top = max(math.log2(after[-1].combinations), 1.0)
    points = [(_x(0, len(after)), _y(0, top))]
    points += [(_x(one.relays, len(after)), _y(math.log2(one.combinations), top)) for one in after]
    yield _line(points, "#888", 'stroke-dasharray="5 4"')
    yield _text(points[-1][0] + 8, points[-1][1] - 6, "all combinations", colour="#666")


def _linked(linkage: Linkage, colour: str, top: float) -> Iterator[str]:
    relays = len(linkage.after)
    points = [(_x(0, relays), _y(0, top))]
    points += [(_x(one.relays, relays), _y(one.excess_bits, top)) for one in linkage.after]
    yield _line(points, colour)
    last = linkage.after[-1]
    x, y = points[-1]
    yield _text(x + 8, y - 6, linkage.mapping.name, colour=colour)
    yield _text(x + 8, y + 8, f"{last.excess_bits:.1f} bits linked", colour=colour)


def _strips(pools: Sequence[int], top: float) -> Iterator[str]:
    width = _WIDTH - _LEFT - _RIGHT
    yield _text(_LEFT, top - 10, "One fraction drives every pool: a user's place is the same on every relay")
    for row, pool in enumerate(pools):
        y = top + row * _ROW
        yield _text(_LEFT - 8, y + 11, str(pool), "end")
        yield f'<rect x="{_LEFT}" y="{y}" width="{width}" height="{_ROW - 4}" fill="#eef2f5"/>'
        if pool <= _MOST_STRIPES:
            yield "".join(
                f'<rect x="{_LEFT + width * exit_ / pool:.2f}" y="{y}" width="{width / pool:.2f}" '
                f'height="{_ROW - 4}" fill="#d5dde3"/>'
                for exit_ in range(0, pool, 2)
            )
        own = math.floor(_FRACTION * pool)
        yield (
            f'<rect x="{_LEFT + width * own / pool:.2f}" y="{y}" width="{width / pool:.2f}" '
            f'height="{_ROW - 4}" fill="{_COLOURS[0]}"/>'
        )
    x = _LEFT + width * _FRACTION
    bottom = top + len(pools) * _ROW
    yield f'<path d="M{x:.1f} {top - 4}V{bottom}" stroke="{_COLOURS[0]}" stroke-dasharray="3 3"/>'
    yield _text(x, bottom + 14, "one user", "middle", _COLOURS[0])
