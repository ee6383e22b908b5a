# SPDX-License-Identifier: Apache-2.0
"""From a file or a pipe to whole lines, whatever they are packed in: gzip, bzip2, xz, zstd, UTF-16."""

from __future__ import annotations

import bz2
import codecs
import lzma
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from threading import Thread
from typing import BinaryIO, cast

from detector.base.errors import HostError, UsageError

BLOCK = 1 << 20
LONGEST_LINE = 1 << 16
GARBAGE_LINE = b"?"
_CHUNK = 1 << 18
_PATIENCE = 0.5
"""Seconds until what has come through a pipe is looked at."""
_MAX_RATIO_WINDOW = 1 << 27
_ZSTD_WAIT = 10.0


@dataclass(slots=True)
class Unpacking:
    """What was undone on the way to lines.

    Attributes:
        names: of the packings, outermost first.
        broken: why the end is missing, where it is.
    """

    names: list[str] = field(default_factory=list)
    broken: str = ""


def chunks(
    read: Callable[[int], bytes],
    progress: Callable[[int], None] = lambda _bytes: None,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[bytes]:
    """What a file holds, some megabytes at a time; of a pipe what has come within half a second.

    Args:
        read: gives some bytes, at most so many, and none at the end.
        progress: told how many.
        now: a clock.
    """
    pending: list[bytes] = []
    size, since = 0, now()
    while chunk := read(_CHUNK):
        progress(len(chunk))
        pending.append(chunk)
        size += len(chunk)
        if size >= BLOCK or now() - since > _PATIENCE:
            yield b"".join(pending)
            pending, size, since = [], 0, now()
    if pending:
        yield b"".join(pending)


def unpacked(parts: Iterator[bytes], unpacking: Unpacking) -> Iterator[bytes]:
    """The text within, as UTF-8 or whatever has ASCII in it.

    Raises:
        UsageError: it is packed in a way that is not read here; the error says how to unpack it.
    """
    first = next(parts, b"")
    while 0 < len(first) < 8 and (more := next(parts, b"")):
        first += more
    for magic, name, unpack in _PACKINGS:
        if first.startswith(magic):
            unpacking.names.append(name)
            return unpacked(unpack(_again(first, parts), unpacking), unpacking)
    encoding = _encoding(first)
    if encoding:
        unpacking.names.append(encoding.upper().replace("_", "-"))
        return _decoded(_again(first, parts), encoding)
    return _again(first.removeprefix(codecs.BOM_UTF8), parts)


def _again(first: bytes, parts: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from parts


def _encoding(first: bytes) -> str:
    """UTF-16 by its mark, or by the zeros that it puts beside each ASCII character."""
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16-le" if first.startswith(codecs.BOM_UTF16_LE) else "utf-16-be"
    sample = first[:512]
    if len(sample) >= 8:
        odd, even = sample[1::2], sample[::2]
        if odd.count(0) > 0.9 * len(odd) and even.count(0) < 0.1 * len(even):
            return "utf-16-le"
        if even.count(0) > 0.9 * len(even) and odd.count(0) < 0.1 * len(odd):
            return "utf-16-be"
    return ""


def _decoded(parts: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    for part in parts:
        yield decoder.decode(part).lstrip("\ufeff").encode("utf-8", "replace")
    yield decoder.decode(b"", final=True).encode("utf-8", "replace")


def _gunzip(parts: Iterator[bytes], unpacking: Unpacking) -> Iterator[bytes]:
    """gzip, one member after the other."""
    member = zlib.decompressobj(wbits=31)
    try:
        for part in parts:
            left = part
            while left:
                if member.eof:
                    left = left.lstrip(b"\0")
                    if not left:
                        break
                    member = zlib.decompressobj(wbits=31)
                yield member.decompress(left, BLOCK)
                left = member.unused_data if member.eof else member.unconsumed_tail
        if not member.eof:
            yield member.flush()
            unpacking.broken = "the gzip file ends before its end"
    except zlib.error:
        unpacking.broken = "the gzip file is damaged"


def _staged(
    new: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor], name: str
) -> Callable[[Iterator[bytes], Unpacking], Iterator[bytes]]:
    """bzip2 and xz, whose objects work alike."""

    def unpack(parts: Iterator[bytes], unpacking: Unpacking) -> Iterator[bytes]:
        stage = new()
        try:
            for part in parts:
                left = part
                while left or not (stage.needs_input or stage.eof):
                    if stage.eof:
                        left = left.lstrip(b"\0")
                        if not left:
                            break
                        stage = new()
                    yield stage.decompress(left, BLOCK)
                    left = stage.unused_data if stage.eof else b""
            if not stage.eof:
                unpacking.broken = f"the {name} file ends before its end"
        except (OSError, EOFError, lzma.LZMAError, MemoryError):
            unpacking.broken = f"the {name} file is damaged"

    return unpack


def _zstd(parts: Iterator[bytes], unpacking: Unpacking) -> Iterator[bytes]:
    """Zstd by its own command, which Debian installs nearly everywhere; Python learns it in 3.14."""
    command = shutil.which("zstd")
    if command is None:
        raise HostError(
            "this is a zstd file, and the zstd command is not here",
            "install it, or unpack the file elsewhere: `zstdcat FILE | exitprint analyze -`",
        )
    with subprocess.Popen(
        [command, "-dcq", "--memory=128MB"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        feeder = _fed(process, parts)
        output = cast(BufferedReader, process.stdout)
        try:
            while made := output.read1(_CHUNK):
                yield made
        finally:
            output.close()
            if process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_ZSTD_WAIT)
                if process.poll() is None:
                    process.kill()
            feeder.join(timeout=_ZSTD_WAIT)
    if process.returncode:
        unpacking.broken = "the zstd file is damaged or ends before its end"


def _fed(process: subprocess.Popen[bytes], parts: Iterator[bytes]) -> Thread:
    def feed() -> None:
        with suppress(OSError, ValueError), cast(BinaryIO, process.stdin) as entry:
            for part in parts:
                entry.write(part)

    thread = Thread(target=feed, daemon=True)
    thread.start()
    return thread


def _refuse(name: str, way_out: str) -> Callable[[Iterator[bytes], Unpacking], Iterator[bytes]]:
    def refuse(_parts: Iterator[bytes], _unpacking: Unpacking) -> Iterator[bytes]:
        raise UsageError(f"this is {name}", way_out)

    return refuse


_PACKINGS: tuple[tuple[bytes, str, Callable[[Iterator[bytes], Unpacking], Iterator[bytes]]], ...] = (
    (b"\x1f\x8b", "gzip", _gunzip),
    (b"BZh", "bzip2", _staged(bz2.BZ2Decompressor, "bzip2")),
    (b"\xfd7zXZ\0", "xz", _staged(lambda: lzma.LZMADecompressor(memlimit=_MAX_RATIO_WINDOW), "xz")),
    (b"\x5d\0\0", "lzma", _staged(lambda: lzma.LZMADecompressor(memlimit=_MAX_RATIO_WINDOW), "lzma")),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x04\x22\x4d\x18", "lz4", _refuse("an lz4 file", "unpack it: `lz4 -dc FILE | exitprint analyze -`")),
    (b"\x1f\x9d", "compress", _refuse("a file of compress", "unpack it: `zcat FILE | exitprint analyze -`")),
    (b"PK\x03\x04", "zip", _refuse("a zip archive", "unpack it: `unzip -p FILE | exitprint analyze -`")),
    (b"7z\xbc\xaf", "7z", _refuse("a 7z archive", "unpack it: `7z x -so FILE | exitprint analyze -`")),
)


def blocks(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Whole lines, some megabytes at a time, each block ending with a line feed.

    What goes on without a line feed for longer than any line of conntrack becomes a line of one character.
    """
    rest = b""
    for part in parts:
        for start in range(0, len(part), BLOCK):
            head, feed, tail = part[start : start + BLOCK].rpartition(b"\n")
            if feed:
                yield rest + head + feed
                rest = tail
            else:
                rest += tail
            if len(rest) > LONGEST_LINE:
                rest = GARBAGE_LINE
    if rest:
        yield rest + b"\n"
