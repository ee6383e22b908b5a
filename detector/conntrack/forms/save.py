# SPDX-License-Identifier: Apache-2.0
"""``conntrack -o save``: flows as options of conntrack itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from detector.conntrack.forms.canonical import GARBAGE, Tuple, in_blocks, line, protocol_number

NAME = "conntrack -o save"
LINE = re.compile(rb"^[ \t]*-([AIUD])[ \t].{0,400}?[ \t]?-s[ \t].{0,400}?[ \t]-q[ \t]", re.MULTILINE)
_EVENTS = {"A": "", "I": "", "U": "UPDATE", "D": "DESTROY"}
_LONG = {
    "--orig-src": "-s",
    "--src": "-s",
    "--orig-dst": "-d",
    "--dst": "-d",
    "--reply-src": "-r",
    "--reply-dst": "-q",
    "--proto": "-p",
    "--orig-port-src": "--sport",
    "--orig-port-dst": "--dport",
    "--zone": "-w",
}


def rewrite(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same flows as conntrack's lines."""
    for block in blocks:
        yield from in_blocks(_line(text) if text.strip() else b"\n" for text in block.split(b"\n")[:-1])


def _line(text: bytes) -> bytes:
    words = text.decode("latin-1").split()
    options = {_LONG.get(word, word): value for word, value in pairwise(words) if word[:1] == "-"}
    try:
        number = protocol_number(options["-p"])
        identifier = options.get("--icmp-id", options.get("--icmpv6-id", ""))
        original = Tuple(
            options["-s"], options["-d"], options.get("--sport", ""), options.get("--dport", ""), identifier
        )
        reply = Tuple(options["-r"], options["-q"], options.get("--reply-port-src", ""),
                      options.get("--reply-port-dst", ""), identifier)  # fmt: skip
        event = _EVENTS[words[0][1:]]
    except (KeyError, ValueError):
        return GARBAGE
    return line(number, original, reply, event=event, zone=options.get("-w", ""))
