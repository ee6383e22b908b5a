# SPDX-License-Identifier: Apache-2.0
"""What conntrack prints, as columns of flows: ``conntrack -E`` events and ``conntrack -L`` entries.

A line is read by one regular expression over a whole block of lines; only a block that holds something else
is looked at line by line. A line that is not understood is counted and its number kept, never its text,
since it may hold addresses.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.analysis.kernel_columns import Packed
from detector.base.family import pack

BLOCK = 1 << 22
LONGEST_LINE = 1 << 16
KEPT_NUMBERS = 5
_CACHED = 1 << 17
_MAPPED = np.frombuffer(pack(IPv4Address(0))[:12], np.uint32)

_ADDRESS = rb"([0-9A-Fa-f:.]{2,45})"
# Timeout, TCP state, counters, [UNREPLIED], zones, ...; atomic, so that long garbage takes no longer.
# (Not possessive: before 3.11.5 that went too far.)
_WORDS = rb"(?>(?:[\t ]+(?!src=)\S+)*)"
_LINE = re.compile(
    rb"^(?:\[[ ]*(\d{1,12}\.\d{1,9})\])?[\t ]*(?:\[(NEW|UPDATE|DESTROY)\][\t ]+)?"
    rb"(?:ipv[46][\t ]+\d{1,3}[\t ]+)?[\w-]{1,24}[\t ]+(\d{1,3})"
    + _WORDS
    + rb"[\t ]+src="
    + _ADDRESS
    + rb"[\t ]+dst=[0-9A-Fa-f:.]{2,45}"
    rb"(?:[\t ]+(?:sport=|srckey=|type=\d{1,3}[\t ]+code=\d{1,3}[\t ]+id=)(0x[0-9a-f]{1,8}|\d{1,5}))?"
    + _WORDS
    + rb"[\t ]+src="
    + _ADDRESS
    + rb"[\t ]+dst="
    + _ADDRESS
    + rb"(?!\S)[^\n]*$",
    re.MULTILINE,
)
_ZONE = re.compile(rb"[\t ]zone(?:-orig|-reply)?=(\d{1,5})(?!\d)")
_SUMMARY = re.compile(rb"conntrack v[\d.]+ \(conntrack-tools\)")

Row = tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes]
"""Time, event, protocol, tunnel address, source port, destination, exit: empty for what is not there."""


@dataclass(frozen=True, slots=True)
class Flows:
    """Translated flows in the order of the listing, n of them.

    Attributes:
        time: shape (n,), seconds since 1970, NaN where the line has none.
        port: shape (n,), uint64: protocol << 32 | source port (or ICMP identifier).
        source, exit, destination: shape (n, 16); the destination is that after destination NAT.
        zone: shape (n,), conntrack zone.
        four: shape (n,): the flow is IPv4.
    """

    time: NDArray[np.float64]
    port: NDArray[np.uint64]
    source: Packed = field(repr=False)
    exit: Packed = field(repr=False)
    destination: Packed = field(repr=False)
    zone: NDArray[np.uint32]
    four: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.time)

    def take(self, which: NDArray[np.intp]) -> Flows:
        """Some of them, by index, in that order."""
        return Flows(
            self.time[which],
            self.port[which],
            self.source[which],
            self.exit[which],
            self.destination[which],
            self.zone[which],
            self.four[which],
        )


class _Columns(NamedTuple):
    """Every line of a block: texts, and addresses of shape (n, 16)."""

    time: Sequence[bytes]
    event: Sequence[bytes]
    protocol: Sequence[bytes]
    port: Sequence[bytes]
    source: Packed
    destination: Packed
    exit: Packed
    four: NDArray[np.bool_]


@dataclass(slots=True)
class Lines:
    """What became of the lines so far.

    Attributes:
        read: lines, without empty ones.
        flows: new flows among them.
        translated: flows whose source address was translated.
        timed: flows with the time of their beginning.
        other_events: lines about flows that change or end.
        garbage: lines that are not conntrack's.
        garbage_numbers: the numbers of the first of those, 1 being the first line.
    """

    read: int = 0
    flows: int = 0
    translated: int = 0
    timed: int = 0
    other_events: int = 0
    garbage: int = 0
    garbage_numbers: list[int] = field(default_factory=list)


def blocks(file: BinaryIO, progress: Callable[[int], None] = lambda _bytes: None) -> Iterator[bytes]:
    """Whole lines of a file, some megabytes at a time, each block ending with a line feed.

    What goes on without a line feed for longer than any line of conntrack becomes a line of one character.
    """
    rest = b""
    while chunk := file.read(BLOCK):
        progress(len(chunk))
        head, feed, tail = chunk.rpartition(b"\n")
        if feed:
            yield rest + head + feed
            rest = tail
        else:
            rest += tail
        if len(rest) > LONGEST_LINE:
            rest = b"?"
    if rest:
        yield rest + b"\n"


class Reader:
    """Reads blocks of lines one after the other."""

    def __init__(self) -> None:
        self.lines = Lines()
        self._number = 0  # lines of the blocks before, empty ones too
        self._packed = _PackedAddresses()

    def read(self, block: bytes) -> Flows | None:
        """The translated flows of a block of whole lines, or None where it has none."""
        count = block.count(b"\n")
        rows: list[Row] = _LINE.findall(block)
        columns = self._columns(rows) if len(rows) == count else None
        texts = block.split(b"\n")[:-1] if columns is None or b"zone" in block else []
        if columns is None:
            columns, texts = self._one_by_one(texts)
        else:
            self.lines.read += count
        self._number += count
        return self._translated(columns, texts) if columns else None

    def _one_by_one(self, texts: Sequence[bytes]) -> tuple[_Columns | None, list[bytes]]:
        """The lines that are conntrack's, as columns and as text; the others are counted."""
        matches = list(map(_LINE.match, texts))
        columns = self._columns([match.groups(b"") for match in matches if match])  # type: ignore[misc]
        if columns is None:
            matches = [match if match and self._addresses_are_good(match) else None for match in matches]
            columns = self._columns([match.groups(b"") for match in matches if match])  # type: ignore[misc]
        for number, (text, match) in enumerate(zip(texts, matches, strict=True), self._number + 1):
            if not match and text.strip() and not _SUMMARY.match(text):
                self._garbage(number)
        good = [match[0] for match in matches if match]
        self.lines.read += len(good)
        return columns, good

    def _addresses_are_good(self, match: re.Match[bytes]) -> bool:
        kinds = {self._packed[match[group]][:12] == _MAPPED.tobytes() for group in (4, 6, 7)}
        return len(kinds) == 1 and all(self._packed[match[group]] for group in (4, 6, 7))

    def _garbage(self, number: int) -> None:
        self.lines.read += 1
        self.lines.garbage += 1
        if len(self.lines.garbage_numbers) < KEPT_NUMBERS:
            self.lines.garbage_numbers.append(number)

    def _columns(self, rows: list[Row]) -> _Columns | None:
        """The rows as columns; None where there are none, or where what stands for an address is none."""
        if not rows:
            return None
        time, event, protocol, source, port, destination, exit_ = zip(*rows, strict=True)
        joined = [b"".join(map(self._packed.__getitem__, column)) for column in (source, destination, exit_)]
        if any(len(one) != 16 * len(rows) for one in joined):
            return None
        packed = [np.frombuffer(one, np.uint8).reshape(-1, 16) for one in joined]
        four, *others = ((one.view(np.uint32)[:, :3] == _MAPPED).all(axis=1) for one in packed)
        if not all(np.array_equal(four, other) for other in others):
            return None
        return _Columns(time, event, protocol, port, packed[0], packed[1], packed[2], four)

    def _translated(self, columns: _Columns, texts: Sequence[bytes]) -> Flows | None:
        """The flows of some lines, whose zones are in `texts` where they have any."""
        begins = self._begins(columns.event)
        kept = np.flatnonzero(begins & (columns.source != columns.exit).any(axis=1))
        self.lines.flows += int(np.count_nonzero(begins))
        self.lines.translated += len(kept)
        if not len(kept):
            return None
        flows = Flows(
            time=_seconds(columns.time),
            port=_ports(columns.protocol, columns.port),
            source=columns.source,
            exit=columns.exit,
            destination=columns.destination,
            zone=_zones(texts) if texts else np.zeros(len(columns.event), np.uint32),
            four=columns.four,
        ).take(kept)
        self.lines.timed += int(np.count_nonzero(~np.isnan(flows.time)))
        return flows

    def _begins(self, event: Sequence[bytes]) -> NDArray[np.bool_]:
        """Which lines are about a flow that begins, or lives: all but [UPDATE] and [DESTROY]."""
        others = event.count(b"UPDATE") + event.count(b"DESTROY")
        self.lines.other_events += others
        if not others:
            return np.ones(len(event), np.bool_)
        return np.fromiter((one in {b"", b"NEW"} for one in event), np.bool_, len(event))


def as_bytes(packed: Packed) -> list[bytes]:
    """Each address of a column as 16 bytes."""
    texts: list[bytes] = np.ascontiguousarray(packed).view("V16").ravel().tolist()
    return texts


class _PackedAddresses(dict[bytes, bytes]):
    """Addresses as text to 16 bytes, or to none where it is no address; remembers the recent ones."""

    def __missing__(self, text: bytes) -> bytes:
        try:
            if b":" in text:
                packed = socket.inet_pton(socket.AF_INET6, text.decode())
            else:
                packed = _MAPPED.tobytes() + socket.inet_pton(socket.AF_INET, text.decode())
        except (OSError, ValueError):
            return b""
        if len(self) >= _CACHED:
            self.clear()
        self[text] = packed
        return packed


def _seconds(times: Sequence[bytes]) -> NDArray[np.float64]:
    """Seconds, NaN for an empty text."""
    if all(times):
        return np.array(times).astype(np.float64)
    return np.array([float(one) if one else np.nan for one in times])


def _zones(texts: Sequence[bytes]) -> NDArray[np.uint32]:
    found = map(_ZONE.search, texts)
    return np.array([int(zone[1]) & 0xFFFF if zone else 0 for zone in found], np.uint32)


def _ports(protocol: Sequence[bytes], port: Sequence[bytes]) -> NDArray[np.uint64]:
    # Whatever the base, different texts of one protocol give different numbers, which is all that counts.
    numbers = np.array([int(one, 16) if one else 0 for one in port], np.uint64)
    protocols = np.array(protocol).astype(np.uint64)
    return protocols << np.uint64(32) | numbers
