# SPDX-License-Identifier: Apache-2.0
"""ulogd2's PRINTFLOW into LOGEMU or SYSLOG: the usual NAT log that is kept for compliance."""

from __future__ import annotations

import re
from collections.abc import Iterator

from detector.conntrack.forms.canonical import GARBAGE, Tuple, line, protocol_number

NAME = "ulogd2 (PRINTFLOW)"
_HALF = rb"SRC=(\S{2,45}) DST=(\S{2,45}) PROTO=(\S{1,10})(?: SPT=(\d{1,5}) DPT=(\d{1,5}))?[^\n]{0,200}?"
LINE = re.compile(
    rb"^(?P<prefix>[^\n]{0,300}?)(?:\[(?P<event>NEW|UPDATE|DESTROY)\][ \t]+)?ORIG: "
    + _HALF
    + rb",?[ ]*REPLY: "
    + _HALF
    + rb"[ \t\r]*$",
    re.MULTILINE,
)


def rewrite(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same flows as conntrack's lines, with the prefix that they have."""
    for block in blocks:
        yield LINE.sub(_line, block)


def _line(found: re.Match[bytes]) -> bytes:
    texts = [(one or b"").decode("latin-1") for one in found.groups()[2:]]
    try:
        number = protocol_number(texts[2])
    except ValueError:
        return GARBAGE[:-1]
    original, reply = Tuple(texts[0], texts[1], *texts[3:5]), Tuple(texts[5], texts[6], *texts[8:10])
    if number in {1, 58}:  # it names no identifier, so each flow counts as one of the same
        original, reply = (Tuple(one.source, one.destination, identifier="0") for one in (original, reply))
    event = (found["event"] or b"").decode()
    return found["prefix"] + line(number, original, reply, event=event)[:-1]
