# SPDX-License-Identifier: Apache-2.0
"""Lines of one form to columns of flows.

The heads of a block's lines are read by one regular expression, the rest by NumPy (`tuples`); a line whose
head is of another form is looked at by itself. A line that is not understood is counted and its number kept,
never its text, since it may hold addresses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from detector.analysis.kernel_columns import Packed
from detector.base.flows import FlowClass
from detector.conntrack.addresses import Block, Mask, PackedAddresses, Places, is_inside, numbers_at
from detector.conntrack.clocks import Clock, Seconds, classic, stamps
from detector.conntrack.forms import LINE_FORMS, PLAIN, LineForm
from detector.conntrack.tuples import TCP, UDP, Words, ages_of, stamps_of, tuples_of, zones_of

KEPT_NUMBERS = 5
_EVENTS = {b"": 0, b"NEW": 1, b"UPDATE": 2, b"DESTROY": 3}
_ENTRY, _NEW, _UPDATE, _DESTROY = range(4)
# Places in a line of `conntrack -E -o timestamp`, and the width of a protocol's name in every line.
_POINT, _STAMPED, _NAME, _MICRO_DIGITS = 11, 20, 9, 6
_DNS_PORTS = np.array([53, 853])
_HTTPS = 443
_REMARK = re.compile(
    rb"conntrack v[\d.]+ \(conntrack-tools\)|#"
    rb"|--(?:$| (?:Boot|Logs? begin|Journal begins|Reboot|No entries|cursor))"
    rb"|.*(?:This message means that the current netlink socket|Please, check --buffer-size"
    rb"|message repeated \d+ times)"
)
_LOSS = re.compile(
    rb".*(?:ENOBUFS|[Ll]osing events|table full, dropping|netlink_socket_buffer|rate-limit"
    rb"|[Ss]uppressed \d+ messages|[Ll]ost \d+ messages|dropp(?:ing|ed) (?:\d+ )?(?:messages|events))"
)
_FOREIGN = re.compile(
    rb"(?:<\d{1,3}>)?(?:\d{1,2} )?\[?(?:[A-Z][a-z]{2} [ \d]?\d |\d{4}-\d\d-\d\d[T ]|\d{9,11}\.)"
    rb"[^\n]{0,200}?[\w./-]+(?:\[\d+\])?: "
)


@dataclass(frozen=True, slots=True)
class Flows:
    """Flows in the order of the file, n of them.

    Attributes:
        time: shape (n,), seconds, NaN where the line has none.
        port: shape (n,), uint64: protocol << 32 | source port (or ICMP identifier).
        source, exit, destination: shape (n, 16); the destination is that after destination NAT.
        zone: shape (n,), conntrack zone.
        four: shape (n,): the flow is IPv4.
        kind: shape (n,), uint8: the `FlowClass`.
        changed: shape (n,), int32: the source port that the site sees where it was changed, else -1.
        ends: shape (n,): the line tells of the flow's end.
        inside: shape (n,): the site is in a private network, not on the internet.
    """

    time: Seconds
    port: NDArray[np.uint64]
    source: Packed = field(repr=False)
    exit: Packed = field(repr=False)
    destination: Packed = field(repr=False)
    zone: NDArray[np.uint32]
    four: Mask
    kind: NDArray[np.uint8]
    changed: NDArray[np.int32]
    ends: Mask
    inside: Mask

    def __len__(self) -> int:
        return len(self.time)

    @property
    def translated(self) -> Mask:
        """Whose source address was translated, shape (n,)."""
        changed: Mask = (self.source.view(np.uint64) != self.exit.view(np.uint64)).any(axis=1)
        return changed

    def take(self, which: Places | Mask | slice) -> Flows:
        """Some of them, by index, mask or slice."""
        return Flows(*(getattr(self, one.name)[which] for one in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Flows]) -> Flows:
        """All of several (at least one)."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))


@dataclass(slots=True)
class Lines:
    """What became of the lines so far.

    Attributes:
        read: lines, without empty ones and remarks.
        flows: new flows among them.
        translated: flows whose source address was translated.
        timed: translated flows with the time of their beginning.
        other_events: lines about flows that change or end, where others tell of their beginning.
        entries, events: lines of a listing, and lines of [NEW].
        updates, destroys: lines of [UPDATE] and [DESTROY].
        foreign: lines of other programs in the same log.
        losses: warnings that events were lost.
        garbage: lines that are not conntrack's.
        garbage_numbers: the numbers of the first of those, 1 being the first line of a file.
    """

    read: int = 0
    flows: int = 0
    translated: int = 0
    timed: int = 0
    other_events: int = 0
    entries: int = 0
    events: int = 0
    updates: int = 0
    destroys: int = 0
    foreign: int = 0
    losses: int = 0
    garbage: int = 0
    garbage_numbers: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Heads:
    """What the lines of a block begin with, n lines.

    Attributes:
        time: seconds, NaN where there is none.
        event: shape (n,), a value of `_EVENTS`.
        protocol: shape (n,), -1 where the line is of no form.
    """

    time: Seconds
    event: NDArray[np.uint8]
    protocol: NDArray[np.int64]


class Reader:
    """Reads the blocks of one file after the other.

    Args:
        form: how its lines begin.
        lines: where they are counted.
        ages: whether ``delta-time`` may stand for a time: only within one listing are two of them comparable.
    """

    def __init__(self, form: LineForm, lines: Lines, *, ages: bool = True) -> None:
        self._form = form
        self._clocks: dict[str, Clock] = {}
        self._dates = Clock(classic)
        self._ages = ages
        self.lines = lines
        self._number = 0  # lines of the blocks before, empty ones too
        self._packed = PackedAddresses()

    def read(self, text: bytes) -> Flows | None:
        """The flows of a block of whole lines that begin or end there, or None where it has none.

        Lines of [UPDATE] are counted only.
        """
        block = Block(text)
        words = Words(block)
        heads = self._heads(block)
        tuples = tuples_of(block, words, heads.protocol, self._packed)
        good = tuples.good
        self._count(block, heads, good)
        self._number += len(block.ends)
        kept = np.flatnonzero(good & (heads.event != _UPDATE))
        if not len(kept):
            return None
        time = self._times(block, words, heads)
        protocol, service = heads.protocol[kept], tuples.service[kept]
        port, changed = tuples.port[kept], tuples.changed[kept]
        return Flows(
            time=time[kept],
            port=protocol.astype(np.uint64) << np.uint64(32) | port.astype(np.uint64),
            source=tuples.source[kept],
            exit=tuples.exit[kept],
            destination=tuples.destination[kept],
            zone=zones_of(block, words)[kept],
            four=tuples.four[kept],
            kind=_kinds(protocol, service),
            changed=np.where((changed > 0) & (changed != port), changed, -1).astype(np.int32),
            ends=heads.event[kept] == _DESTROY,
            inside=is_inside(tuples.destination[kept]),
        )

    def _heads(self, block: Block) -> _Heads:
        n = len(block.ends)
        if self._form is PLAIN and (usual := _usual_heads(block)) is not None:
            return usual
        rows = self._form.head.findall(block.text)
        if len(rows) == n:
            return self._columns(rows, n, None)
        matches = list(self._form.head.finditer(block.text))
        lines = block.line_of(np.array([match.start() for match in matches], np.int64))
        return self._columns([match.groups(b"") for match in matches], n, (block, lines))

    def _columns(
        self, rows: Sequence[tuple[bytes, ...]], n: int, sparse: tuple[Block, Places] | None
    ) -> _Heads:
        """Heads of the lines that have the file's form; the others are tried one by one."""
        if not rows:
            heads = _Heads(np.full(n, np.nan), np.zeros(n, np.uint8), np.full(n, -1))
            return heads if sparse is None else self._others(heads, *sparse)
        prefix, stamp, event, protocol = zip(*rows, strict=True)
        time = self._seconds(self._form, prefix, stamp)
        events = np.fromiter(map(_EVENTS.__getitem__, event), np.uint8, len(rows))
        numbers = np.fromiter(map(int, protocol), np.int64, len(rows))
        if sparse is None:
            return _Heads(time, events, numbers)
        heads = _Heads(np.full(n, np.nan), np.zeros(n, np.uint8), np.full(n, -1))
        for column, values in ((heads.time, time), (heads.event, events), (heads.protocol, numbers)):
            column[sparse[1]] = values
        return self._others(heads, *sparse)

    def _others(self, heads: _Heads, block: Block, known: Places) -> _Heads:
        """Fills in the heads of lines of another form than the file's."""
        unknown = np.setdiff1d(np.arange(len(block.ends)), known)
        for line, text in zip(unknown.tolist(), block.lines(unknown), strict=True):
            if b"src=" not in text:
                continue
            for form in LINE_FORMS:
                match = form.head.match(text)
                if match:
                    prefix, stamp, event, protocol = match.groups(b"")
                    heads.time[line] = self._seconds(form, [prefix], [stamp])[0]
                    heads.event[line] = _EVENTS[event]
                    heads.protocol[line] = int(protocol)
                    break
        return heads

    def _seconds(self, form: LineForm, prefix: Sequence[bytes], stamp: Sequence[bytes]) -> Seconds:
        """Conntrack's own stamp where a line has it, else the prefix."""
        if all(stamp):
            return stamps(stamp)
        clock = self._clocks.setdefault(form.name, form.clock())
        time = clock.seconds(prefix) if form.name else np.full(len(prefix), np.nan)
        if any(stamp):
            own = stamps(stamp)
            time = np.where(np.isnan(own), time, own)
        return time

    def _times(self, block: Block, words: Words, heads: _Heads) -> Seconds:
        """When each flow began: ``[start=...]``, else the line's time, for an end less what it lasted."""
        time = heads.time
        started, dates = stamps_of(block, words, b"[start")
        if dates:
            time = time.copy()
            # A stamp of the line is finer, and in UTC, where the date is in the time zone of who listed it.
            seconds = self._dates.seconds(dates)
            usable = ~np.isnan(seconds) & (np.isnan(time[started]) | (heads.event[started] == _DESTROY))
            started = started[usable]
            time[started] = seconds[usable]
        lines, ages = ages_of(block, words)
        if len(lines):
            time = time.copy()
            lasted = np.isin(lines, started, invert=True) & (
                (heads.event[lines] == _DESTROY) | np.isnan(time[lines])
            )
            lines, ages = lines[lasted], ages[lasted]
            relative = np.where(np.isnan(time[lines]), 0.0 if self._ages else np.nan, time[lines])
            time[lines] = relative - ages
        return time

    def _count(self, block: Block, heads: _Heads, good: Mask) -> None:
        lines = self.lines
        lines.read += int(np.count_nonzero(good))
        counts = np.bincount(heads.event[good], minlength=len(_EVENTS))
        lines.entries += int(counts[_ENTRY])
        lines.events += int(counts[_NEW])
        lines.updates += int(counts[_UPDATE])
        lines.destroys += int(counts[_DESTROY])
        bad = np.flatnonzero(~good & (block.ends > block.starts))
        for line, text in zip(bad.tolist(), block.lines(bad), strict=True):
            self._classify(line, text)

    def _classify(self, line: int, text: bytes) -> None:
        """A line that tells of no flow."""
        if not text.strip():
            return
        if b"src=" not in text:
            if _LOSS.match(text):
                self.lines.losses += 1
                return
            if _REMARK.match(text):
                return
            if _FOREIGN.match(text):
                self.lines.read += 1
                self.lines.foreign += 1
                return
        self.lines.read += 1
        self.lines.garbage += 1
        if len(self.lines.garbage_numbers) < KEPT_NUMBERS:
            self.lines.garbage_numbers.append(self._number + line + 1)


_OF_A_NAME = np.zeros(256, np.bool_)
_OF_A_NAME[list(b"abcdefghijklmnopqrstuvwxyz0123456789_-")] = True


def _usual_heads(block: Block) -> _Heads | None:
    """Heads of lines that are all just as ``conntrack -E -o timestamp`` or ``conntrack -L`` print them.

        [1780000000.123456]     [NEW] udp      17 30 src=...
        udp      17 30 src=...

    None where a line is not: then the pattern of the form decides.
    """
    starts, characters = block.starts, block.characters
    stamped = characters[starts] == ord("[")
    if stamped.any() and not stamped.all():
        return None
    n = len(starts)
    time, event, body = np.full(n, np.nan), np.zeros(n, np.uint8), starts
    if len(starts) and stamped[0]:
        body = starts + len("[1780000000.123456]\t[DESTROY] ")
        named = [
            block.says(starts + _STAMPED, word) for word in (b"    [NEW] ", b" [UPDATE] ", b"[DESTROY] ")
        ]
        good = block.says(starts + _POINT, b".") & block.says(starts + _STAMPED - 2, b"]\t")
        good &= block.digits(starts + 1, _POINT - 1) & block.digits(starts + _POINT + 1, _MICRO_DIGITS)
        if not (good & np.logical_or.reduce(named)).all():
            return None
        event = np.select(named, [np.uint8(_NEW), np.uint8(_UPDATE), np.uint8(_DESTROY)]).astype(np.uint8)
        whole, fraction = (
            numbers_at(block, starts + 1, _POINT - 1)[0],
            numbers_at(block, starts + _POINT + 1, _MICRO_DIGITS)[0],
        )
        time = whole + fraction / 10.0**_MICRO_DIGITS
    letter = characters[body] - np.uint8(ord("a"))
    protocol, ends, good = numbers_at(block, body + _NAME, 3)
    good &= (letter < 26) & (characters[body + _NAME - 1] == ord(" ")) & (characters[ends] == ord(" "))
    name = block.windows(body, _NAME)
    blank = name == ord(" ")
    good &= (blank | _OF_A_NAME[name]).all(axis=0)
    good &= ~(blank[:-1] & ~blank[1:]).any(axis=0)  # the name, then blanks
    good &= (ends < block.ends) & ~block.says(body, b"ipv4 ") & ~block.says(body, b"ipv6 ")
    return _Heads(time, event, protocol) if good.all() else None


def _kinds(protocol: NDArray[np.int64], service: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The `FlowClass` of each flow."""
    kinds = np.full(len(protocol), FlowClass.OTHER, np.uint8)
    tcp, udp = protocol == TCP, protocol == UDP
    kinds[tcp] = FlowClass.TCP
    kinds[udp & (service == _HTTPS)] = FlowClass.QUIC
    kinds[(tcp | udp) & np.isin(service, _DNS_PORTS)] = FlowClass.DNS
    return kinds
