# SPDX-License-Identifier: Apache-2.0
"""Numbers and addresses at many places of a block of text at once, and blocks as arrays.

Text is looked at by NumPy, a column of characters after the other, so a line costs no Python at all; only
IPv6 addresses, whose text has many shapes, go one by one through a memory of the recent ones.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address

import numpy as np
from numpy.typing import NDArray

from detector.analysis.kernel_columns import Packed
from detector.base.family import pack

Places = NDArray[np.int64]
Mask = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

PADDING = bytes(64)
_CACHED = 1 << 17
_MAPPED = np.frombuffer(pack(IPv4Address(0))[:12], np.uint8)
_LONGEST_IPV4 = len("255.255.255.255")
_LONGEST_IPV6 = 45
_OCTET_DIGITS = 3
_DOT, _ZERO, _BLANK = 46, 48, 32


@dataclass(frozen=True)
class Block:
    """Whole lines as text and as arrays.

    Attributes:
        text: n lines, each ending with a line feed.
    """

    text: bytes

    @cached_property
    def characters(self) -> Bytes:
        """The text, with room behind it, so that what is looked at beyond its end is zero."""
        return np.frombuffer(self.text + PADDING, np.uint8)

    @cached_property
    def ends(self) -> Places:
        """Where each line has its line feed, shape (n,)."""
        return np.flatnonzero(self.characters == ord("\n"))

    @cached_property
    def starts(self) -> Places:
        """Where each line begins, shape (n,)."""
        return np.concatenate(([0], self.ends[:-1] + 1))[: len(self.ends)]

    def line_of(self, places: Places) -> Places:
        """The lines, from 0 on, that places are in."""
        return np.searchsorted(self.ends, places)

    def lines(self, numbers: Places) -> list[bytes]:
        """Some lines as text, without their line feeds."""
        bounds = zip(self.starts[numbers].tolist(), self.ends[numbers].tolist(), strict=True)
        return [self.text[start:end] for start, end in bounds]

    def digits(self, places: Places, count: int) -> Mask:
        """Whether so many digits are at each place."""
        window = self.windows(places, count) - np.uint8(_ZERO)
        return np.logical_and.reduce(window < 10, axis=0)  # type: ignore[no-any-return]

    def says(self, places: Places, word: bytes) -> Mask:
        """Whether a word is at each place."""
        found = np.ones(len(places), np.bool_)
        for offset, wanted in enumerate(word):
            found &= self.characters[places + offset] == wanted
        return found

    def windows(self, places: Places, width: int) -> Bytes:
        """The characters from each place on, shape (width, n); width at most that of `PADDING`."""
        window: Bytes = self.characters[places[None, :] + np.arange(width)[:, None]]
        return window


def numbers_at(block: Block, places: Places, digits: int) -> tuple[NDArray[np.int64], Places, Mask]:
    """Decimal numbers: their values, where they end, and whether there is one of at most so many digits."""
    window = block.windows(places, digits + 1)
    value = np.zeros(len(places), np.int64)
    length = np.zeros(len(places), np.int64)
    going = np.ones(len(places), np.bool_)
    for characters in window:
        digit = characters - np.uint8(_ZERO)
        going &= digit < 10
        np.copyto(value, value * 10 + digit, where=going)
        length += going
    return value, places + length, (length > 0) & ~going


def addresses_at(block: Block, places: Places, cache: PackedAddresses) -> tuple[Packed, Places, Mask, Mask]:
    """Addresses: as 16 bytes each, where they end, whether there is one, and whether it is IPv4."""
    packed = np.zeros((len(places), 16), np.uint8)
    value, ends, four = _ipv4_at(block, places)
    packed[:, :10] = 0
    packed[four, 10:12] = 0xFF
    packed[four, 12:] = value[four].astype(">u4").view(np.uint8).reshape(-1, 4)
    good = four.copy()
    others = np.flatnonzero(~four)
    if len(others):
        window = block.windows(places[others], _LONGEST_IPV6 + 1)
        length = (window <= _BLANK).argmax(axis=0)
        ends = ends.copy()
        ends[others] = places[others] + length
        bounds = zip(places[others].tolist(), ends[others].tolist(), strict=True)
        texts = [cache[block.text[start:end]] for start, end in bounds]
        sound = np.fromiter(map(bool, texts), np.bool_, len(texts))
        good[others] = sound
        joined = b"".join(one or bytes(16) for one in texts)
        packed[others] = np.frombuffer(joined, np.uint8).reshape(-1, 16)
    return packed, ends, good, four


def same_words(block: Block, places: Places, others: Places) -> tuple[Places, Mask]:
    """Where the words at some places end, and whether the same ones are at other places.

    Words of up to 15 characters; a longer one counts as another.
    """
    window = block.windows(places, _LONGEST_IPV4 + 1)
    blank = window <= _BLANK
    length = blank.argmax(axis=0)
    differs = (window != block.windows(others, _LONGEST_IPV4 + 1)) & ~np.logical_or.accumulate(blank, axis=0)
    last = block.characters[others + length] <= _BLANK
    return places + length, blank.any(axis=0) & ~differs.any(axis=0) & last


def _ipv4_at(block: Block, places: Places) -> tuple[NDArray[np.uint32], Places, Mask]:
    """Dotted quads, each followed by a blank or a control character."""
    window = block.windows(places, _LONGEST_IPV4 + 1)
    blank = window <= _BLANK
    length = blank.argmax(axis=0)
    dots = np.cumsum(window == _DOT, axis=0, dtype=np.uint8)
    # Where the first, second, ... dot is: as many characters have fewer dots up to them.
    bounds = [np.count_nonzero(dots < number, axis=0) for number in (1, 2, 3, 4)]
    good = blank.any(axis=0) & (bounds[2] < length) & (bounds[3] >= length)
    value = np.zeros(len(places), np.uint32)
    begin = np.zeros(len(places), np.int64)
    for end in (*bounds[:3], length):
        octet, is_octet = _octet(block, places + begin, end - begin)
        good &= is_octet
        value = value << np.uint32(8) | octet
        begin = end + 1
    return value, places + length, good


def _octet(block: Block, places: Places, digits: NDArray[np.int64]) -> tuple[NDArray[np.uint32], Mask]:
    """Numbers of one to three digits below 256; anything where there is none."""
    octet = np.zeros(len(places), np.uint32)
    good = (digits >= 1) & (digits <= _OCTET_DIGITS)
    for offset in range(_OCTET_DIGITS):
        digit = block.characters[places + offset] - np.uint8(_ZERO)
        used = offset < digits
        good &= ~used | (digit < 10)
        np.copyto(octet, octet * np.uint32(10) + digit, where=used)
    return octet, good & (octet < 256)


class PackedAddresses(dict[bytes, bytes]):
    """Addresses as text to 16 bytes, or to none where it is no address; remembers the recent ones."""

    def __missing__(self, text: bytes) -> bytes:
        try:
            packed = socket.inet_pton(socket.AF_INET6, text.decode("ascii"))
        except (OSError, ValueError):
            return b""
        if packed[:12] == _MAPPED.tobytes():
            return b""  # an IPv4 address is written as one
        if len(self) >= _CACHED:
            self.clear()
        self[text] = packed
        return packed


def is_inside(packed: Packed) -> Mask:
    """Which addresses the internet does not route; the same ones as for `is_global` of bpf/flow.h."""
    words = np.ascontiguousarray(packed).view(">u4")
    four = (packed[:, :12] == _MAPPED).all(axis=1)
    last = words[:, 3]
    inside = (
        (last >> 24 == 0)
        | (last >> 24 == 10)
        | (last >> 24 == 127)
        | (last >> 20 == 0xAC1)  # 172.16.0.0/12
        | (last >> 16 == 0xC0A8)  # 192.168.0.0/16
        | (last >> 16 == 0xA9FE)  # 169.254.0.0/16
        | (last >> 22 == 0x191)  # 100.64.0.0/10
        | (last >> 29 == 7)
    )
    found: Mask = np.where(four, inside, words[:, 0] >> 29 != 1)  # 2000::/3
    return found
