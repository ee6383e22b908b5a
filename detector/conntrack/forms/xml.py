# SPDX-License-Identifier: Apache-2.0
"""``conntrack -o xml``, of a listing and of events.

Read flow by flow with patterns, not as a document: a recording that goes on, or was cut, has no end.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator

from detector.conntrack.forms.canonical import GARBAGE, Tuple, in_blocks, line

NAME = "conntrack -o xml"
LINE = re.compile(rb"<flow(?:\s[^>]{0,200})?>\s*<meta\s", re.MULTILINE)
_LONGEST = 1 << 16
_FLOW = re.compile(rb"<flow(?:\s+type=\"(\w+)\")?[^>]{0,200}>((?:[^<]|<(?!/?flow\b))*)</flow>")
_META = re.compile(
    rb"<meta\s+direction=\"(original|reply|independent)\"[^>]{0,200}>((?:[^<]|<(?!/?meta\b))*)</meta>"
)
_EVENTS = {b"new": "NEW", b"update": "UPDATE", b"destroy": "DESTROY", b"": ""}
_NANOSECONDS = 10**15


def rewrite(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same flows as conntrack's lines."""
    return in_blocks(_line(kind, body) for kind, body in _flows(blocks))


def _flows(blocks: Iterator[bytes]) -> Iterator[tuple[bytes, bytes]]:
    rest = b""
    for block in blocks:
        rest += block
        end = 0
        for found in _FLOW.finditer(rest):
            yield found[1] or b"", found[2]
            end = found.end()
        rest = rest[end:]
        if len(rest) > _LONGEST:
            rest = rest[-_LONGEST:]
    if b"<flow" in rest:
        yield b"", b""  # cut


def _line(kind: bytes, body: bytes) -> bytes:
    metas = dict(_META.findall(body))
    number = re.search(rb"<layer4[^>]*protonum=\"(\d{1,3})\"", metas.get(b"original", b""))
    if number is None or b"reply" not in metas or kind not in _EVENTS:
        return GARBAGE
    zone = _text(metas.get(b"independent", b"") + body, b"zone")
    return line(int(number[1]), _tuple(metas[b"original"]), _tuple(metas[b"reply"]), event=_EVENTS[kind],
                time=_time(body), zone=zone)  # fmt: skip


def _tuple(meta: bytes) -> Tuple:
    return Tuple(*(_text(meta, tag) for tag in (b"src", b"dst", b"sport", b"dport", b"id")))


def _text(body: bytes, tag: bytes) -> str:
    found = re.search(b"<" + tag + rb">([^<]{1,64})</" + tag + b">", body)
    return found[1].decode("ascii", "replace").strip() if found else ""


def _time(body: bytes) -> float | None:
    """Its beginning, or the time of the event."""
    start = _text(body, b"start")
    if start.isdecimal():
        return int(start) / (1e9 if int(start) >= _NANOSECONDS else 1)
    parts = [_text(body, tag) for tag in (b"year", b"month", b"day", b"hour", b"min", b"sec")]
    if not all(part.isdecimal() for part in parts):
        return None
    year, month, day, hour, minute, second = map(int, parts)
    if year not in range(1970, 10_000) or month not in range(1, 13) or day not in range(1, 32):
        return None
    return float(calendar.timegm((year, month, day, hour, minute, second, 0, 0, 0)))
