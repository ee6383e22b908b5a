# SPDX-License-Identifier: Apache-2.0
"""Whatever a listing is packed in, its lines come out; what cannot be unpacked is named."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable

import pytest

from detector.base.errors import UsageError
from detector.conntrack.source import BLOCK, Unpacking, blocks, chunks, unpacked

TEXT = "".join(f"line {number}\n" for number in range(5000)).encode()
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda text: text,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda text: lzma.compress(text, lzma.FORMAT_ALONE),
    "UTF-16-LE": lambda text: b"\xff\xfe" + text.decode().encode("utf-16-le"),
    "UTF-16-BE": lambda text: b"\xfe\xff" + text.decode().encode("utf-16-be"),
}


def undone(packed: bytes, size: int = 1000) -> tuple[bytes, Unpacking]:
    """The lines of a file that comes in small parts."""
    unpacking = Unpacking()
    parts = (packed[start : start + size] for start in range(0, len(packed), size))
    return b"".join(blocks(unpacked(parts, unpacking))), unpacking


@pytest.mark.parametrize("size", [1, 700, 1 << 20])
@pytest.mark.parametrize("name", PACKED)
def test_packings_are_undone_and_named(name: str, size: int) -> None:
    """Every packing by what it begins with, however small the parts are."""
    text, unpacking = undone(PACKED[name](TEXT), size)
    assert text == TEXT
    assert unpacking.names == ([name] if name else [])
    assert not unpacking.broken


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_known_without_a_mark(encoding: str) -> None:
    """PowerShell's cousins write no mark."""
    assert undone(TEXT.decode().encode(encoding))[0] == TEXT


def test_packings_within_each_other() -> None:
    """A UTF-16 file with a mark that was packed."""
    text, unpacking = undone(gzip.compress(PACKED["UTF-16-LE"](TEXT)))
    assert (text, unpacking.names) == (TEXT, ["gzip", "UTF-16-LE"])


def test_a_mark_at_the_beginning_costs_nothing() -> None:
    """The byte order mark of UTF-8."""
    assert undone(b"\xef\xbb\xbf" + TEXT)[0] == TEXT


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz"])
def test_members_follow_each_other(name: str) -> None:
    """`cat a.gz b.gz > c.gz` is both."""
    assert undone(PACKED[name](TEXT) + PACKED[name](TEXT))[0] == TEXT + TEXT


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz"])
def test_a_cut_file_is_read_as_far_as_it_goes(name: str) -> None:
    """What came before the cut is there, and that the end is missing is told."""
    packed = PACKED[name](TEXT)
    text, unpacking = undone(packed[:-20])
    assert TEXT.startswith(text[: text.rfind(b"\n", 0, -1) + 1])
    assert unpacking.broken


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz"])
def test_a_damaged_file_is_no_traceback(name: str) -> None:
    """Bytes that were changed on the way."""
    packed = bytearray(PACKED[name](TEXT))
    packed[len(packed) // 2 : len(packed) // 2 + 40] = bytes(40)
    assert undone(bytes(packed))[1].broken


@pytest.mark.skipif(not shutil.which("zstd"), reason="the zstd command is not here")
def test_zstd_is_undone_by_its_command() -> None:
    """zstd, whole and cut."""
    packed = subprocess.run(["zstd", "-qc"], input=TEXT, capture_output=True, check=True).stdout
    assert undone(packed) == (TEXT, Unpacking(["zstd"]))
    assert undone(packed[:-9])[1].broken


def test_a_bomb_needs_no_memory() -> None:
    """A gigabyte of zeros in a megabyte goes by in blocks."""
    bomb = gzip.compress(bytes(1 << 28), 9)
    tracemalloc.start()
    count = sum(len(block) for block in blocks(unpacked(iter([bomb]), Unpacking())))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count < 100
    assert peak < 10 * BLOCK


@pytest.mark.parametrize(
    ("start", "way_out"),
    [(b"PK\x03\x04", "unzip -p"), (b"\x04\x22\x4d\x18", "lz4 -dc"), (b"7z\xbc\xaf", "7z x")],
)
def test_other_packings_are_named_with_the_way_out(start: bytes, way_out: str) -> None:
    """What is not unpacked here says how to do it."""
    with pytest.raises(UsageError) as caught:
        undone(start + bytes(100))
    assert way_out in caught.value.hint


def test_what_comes_slowly_is_not_waited_for() -> None:
    """Of a pipe, what has come within half a second is handed on."""
    pipe = iter([b"a\n", b"b\n", b"c\n", b""])
    clock = iter([0.0, 0.1, 0.7, 0.7, 0.8, 0.9])
    told: list[int] = []
    parts = list(chunks(lambda _size: next(pipe), told.append, lambda: next(clock)))
    assert parts == [b"a\nb\n", b"c\n"]
    assert told == [2, 2, 2]
