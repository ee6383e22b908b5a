# SPDX-License-Identifier: Apache-2.0
"""Files and pipes to flows in the order of time: which file comes first, how each is read, what was found."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import BinaryIO, cast

import numpy as np

from detector.base.errors import ExitprintError, UsageError
from detector.conntrack.forms import Form, recognise
from detector.conntrack.ordering import Ordering, Selection
from detector.conntrack.reader import Flows, Lines, Reader
from detector.conntrack.source import Unpacking, blocks, chunks, unpacked
from detector.conntrack.unusable import RECORD, named

STDIN = Path("-")
_PEEK = 1 << 16
_FEW = 1 << 20
"""Bytes after which a file whose form is not seen yet is no listing."""

Progress = Callable[[int, int], None]
"""Told of bytes and of lines."""


@dataclass(slots=True)
class Found:
    """What was found while reading.

    Attributes:
        lines: what became of the lines.
        forms: how each file is written, each once, for people.
        broken: what is missing at the end of files.
        newest_first: times mostly went back.
        back: how often time went back, though the lines are not newest first.
        late: flows that could not be put in their places.
        by_ends: flows were told by their ends.
        interrupted: reading was ended by Ctrl-C.
    """

    lines: Lines = field(default_factory=Lines)
    forms: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    newest_first: bool = False
    back: int = 0
    late: int = 0
    by_ends: bool = False
    interrupted: bool = False

    @property
    def form(self) -> str:
        """How the files are written, for people."""
        lines = self.lines
        sources = [
            name
            for name, count in (
                ("entries (conntrack -L)", lines.entries),
                ("events (conntrack -E)", lines.events + lines.updates + lines.destroys),
            )
            if count
        ]
        return "; ".join(filter(None, [" and ".join(sources), *self.forms]))


class _Interrupted(Exception):
    """Ctrl-C, while there was nothing to read."""


class Interruption:
    """Ctrl-C ends the reading, and nothing else; a second one ends the program."""

    def __init__(self) -> None:
        self.asked = False
        self._waiting = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """While files are read."""
        try:
            before = signal.signal(signal.SIGINT, self._hear)
        except ValueError:  # not in the main thread
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _hear(self, _signal: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._waiting:
            raise _Interrupted

    def reader(self, file: BinaryIO) -> Callable[[int], bytes]:
        """Reads from a file; when Ctrl-C is pressed it is at its end."""
        read = getattr(file, "read1", file.read)

        def read_on(size: int) -> bytes:
            self._waiting = True
            try:
                return b"" if self.asked else cast(bytes, read(size))
            except _Interrupted:
                return b""
            finally:
                self._waiting = False

        return read_on


class Listing:
    """One file, which is opened when its turn comes.

    Args:
        path: its name, `STDIN` for standard input.
        found: where what is found is told.
        ages: whether ``delta-time`` may stand for a time.
    """

    def __init__(self, path: Path, found: Found, *, ages: bool) -> None:
        self.path = path
        self.at = -np.inf
        self._found = found
        self._ages = ages

    @property
    def name(self) -> str:
        """For people."""
        return "standard input" if self.path == STDIN else str(self.path)

    def peek(self) -> None:
        """See when it begins."""
        if not self.path.is_file():
            return
        with self._opened() as file:
            head = file.read(_PEEK)
        try:
            text = next(blocks(iter([b"".join(unpacked(iter([head]), Unpacking()))])), b"")
            form = recognise(text)
            if form is None:
                return
            flows = Reader(form.line, Lines(), ages=self._ages).read(b"".join(form.apply(iter([text]))))
        except ExitprintError:
            return  # it will be said when its turn comes
        if flows is not None:
            timed = flows.time[~np.isnan(flows.time)]
            self.at = float(timed.min()) if len(timed) else self.at

    def flows(self, progress: Progress, interruption: Interruption) -> Iterator[Flows]:
        """Its flows, some at a time.

        Raises:
            UsageError: it cannot be read, or holds no flow; the error says what it is.
        """
        unpacking = Unpacking()
        with self._opened() as file:
            raw = chunks(interruption.reader(file), lambda size: progress(size, self._found.lines.read))
            try:
                text = blocks(unpacked(raw, unpacking))
                yield from self._of_text(text, unpacking)
            except ExitprintError as error:
                raise type(error)(f"{self.name}: {error.what}", error.hint) from error
        if unpacking.broken:
            self._found.broken.append(f"{self.name}: {unpacking.broken}")

    def _of_text(self, text: Iterator[bytes], unpacking: Unpacking) -> Iterator[Flows]:
        begun: list[bytes] = []
        form: Form | None = None
        for block in text:
            begun.append(block)
            form = recognise(block)
            if form is not None or sum(map(len, begun)) > _FEW:
                break
        if form is None:
            self._nothing(b"".join(begun)[:_FEW])
            return
        self._found.forms += [one for one in [_said(form, unpacking)] if one not in self._found.forms]
        reader = Reader(form.line, self._found.lines, ages=self._ages)
        for block in form.apply(chain(begun, text)):
            flows = reader.read(block)
            if flows is not None:
                timed = flows.time[~np.isnan(flows.time)]
                self.at = float(timed[-1]) if len(timed) else self.at
                yield flows

    def _nothing(self, sample: bytes) -> None:
        what = named(sample)
        lines = sample.count(b"\n")
        if what is None:
            raise UsageError(f"holds no line of conntrack ({lines:,} lines were looked at)", RECORD)
        if what[0] == "empty":
            raise UsageError("is empty", RECORD)
        raise UsageError(f"this is {what[0]}, not a listing of flows", what[1])

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if self.path == STDIN:
            yield sys.stdin.buffer
            return
        try:
            with self.path.open("rb") as file:
                yield file
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be read: {error.strerror}", "check the name and its rights"
            ) from error


def _said(form: Form, unpacking: Unpacking) -> str:
    return ", ".join([*unpacking.names, *form.names])


def read(
    paths: Sequence[Path], found: Found, progress: Progress = lambda _bytes, _lines: None
) -> Iterator[Flows]:
    """The flows of some files in the order of time, as far as that is known.

    Args:
        paths: the files; without times they are read in this order.
        found: is filled in.
        progress: told of bytes and of lines.
    """
    interruption = Interruption()
    listings = [Listing(path, found, ages=len(paths) == 1) for path in paths]
    if len(listings) > 1:
        for one in listings:
            one.peek()
    selection, ordering = Selection(found.lines), Ordering()
    with interruption.heard():
        for flows in _interleaved(listings, progress, interruption):
            counted = selection.add(flows)
            if counted is not None:
                yield from ordering.add(counted)
    rest = selection.finish()
    if rest is not None:
        yield from ordering.add(rest)
    yield from ordering.finish()
    found.interrupted = interruption.asked
    found.by_ends = selection.by_ends
    if found.lines.entries <= found.lines.events + found.lines.destroys:  # a listing is in no order
        found.newest_first = ordering.newest_first
        found.back = 0 if ordering.newest_first else ordering.back
    found.late = ordering.late


def _interleaved(
    listings: Sequence[Listing], progress: Progress, interruption: Interruption
) -> Iterator[Flows]:
    """Blocks of several files, always of the one that is behind."""
    open_ones: dict[Listing, Iterator[Flows]] = {}
    waiting = sorted(listings, key=lambda one: one.at)  # stable: as given where nothing is known
    while waiting or open_ones:
        if waiting and all(waiting[0].at < one.at for one in open_ones):
            behind = waiting.pop(0)
            open_ones[behind] = behind.flows(progress, interruption)
        else:
            behind = min(open_ones, key=lambda one: one.at)
        flows = next(open_ones[behind], None)
        if flows is None:
            del open_ones[behind]
        else:
            yield flows
