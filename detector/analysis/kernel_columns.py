# SPDX-License-Identifier: Apache-2.0
"""`detector.predictors.kernel_hash` for many flows at once, for those who know destinations.

The kernel program tries `kernel_destination` where the destination is; whoever reads a listing has the
destinations in hand, and a million of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detector.base.family import Address, pack
from detector.predictors.kernel_hash import JHASH_INITVAL

Packed = NDArray[np.uint8]
"""Addresses as 16 bytes each, shape (n, 16); see `detector.base.family.pack`."""
Words = NDArray[np.uint32]

_FIRST = (4, 6, 8, 16, 19, 4)  # the rotations of __jhash_mix
_LAST = (14, 11, 25, 16, 4, 14, 24)  # and of __jhash_final, include/linux/jhash.h


def kernel_exits(
    source: Packed, destination: Packed, zone: Words, pool_first: Address, pool_last: Address
) -> Packed:
    """The exit that ``find_best_ips_proto()`` of net/netfilter/nf_nat_core.c chooses without ``persistent``.

    Args:
        source: shape (n, 16), of the pool's family.
        destination: likewise.
        zone: conntrack zone of each flow, shape (n,).
        pool_first: first address of the range.
        pool_last: last address of the range.

    Returns:
        Shape (n, 16).
    """
    four = pool_first.version == 4
    target = _loaded(destination, four)
    hashed = _hash(_loaded(source, four), target[0 if four else 3] ^ zone)
    above = np.ones(len(source), np.bool_)  # all earlier words equal those of the last address
    exits = np.tile(np.frombuffer(pack(pool_first), np.uint8), (len(source), 1))
    words = exits.view(np.uint32)
    ends = np.frombuffer(pack(pool_first) + pack(pool_last), ">u4").astype(np.uint64).reshape(2, 4)
    for place, index in enumerate([3] if four else range(4)):
        low, high = ends[0, index], ends[1, index]
        base = np.where(above, low, np.uint64(0))
        width = np.where(above, (high - low + np.uint64(1)) & np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFF))
        word = (base + (hashed.astype(np.uint64) * width >> np.uint64(32))).astype(np.uint32)
        words[:, index] = word.astype(">u4").view(np.uint32)
        above &= word == high
        hashed ^= target[place]
    return exits


def kernel_hashes(source: Packed, destination: Packed, zone: Words, *, four: bool) -> Words:
    """The hash that chooses the last word of an exit without ``persistent``, if the words before are fixed.

    Args:
        source: shape (n, 16), all of one family.
        destination: likewise.
        zone: shape (n,).
        four: that family is IPv4.

    Returns:
        Shape (n,).
    """
    target = _loaded(destination, four)
    hashed = _hash(_loaded(source, four), target[0 if four else 3] ^ zone)
    if not four:
        for word in target[:3]:
            hashed ^= word
    return hashed


def within(packed: Packed, first: Address, last: Address) -> NDArray[np.bool_]:
    """Which addresses lie in a range, shape (n,)."""
    words = np.ascontiguousarray(packed).view(">u8")
    low, high = (np.frombuffer(pack(end), ">u8") for end in (first, last))
    over = (words[:, 0] > low[0]) | ((words[:, 0] == low[0]) & (words[:, 1] >= low[1]))
    under = (words[:, 0] < high[0]) | ((words[:, 0] == high[0]) & (words[:, 1] <= high[1]))
    inside: NDArray[np.bool_] = over & under
    return inside


def _loaded(packed: Packed, four: bool) -> list[Words]:
    """Four words as the CPU loads them from memory, zeros after an IPv4 address."""
    words = np.ascontiguousarray(packed).view(np.uint32)
    if not four:
        return [words[:, index].copy() for index in range(4)]
    nothing = np.zeros(len(words), np.uint32)
    return [words[:, 3].copy(), nothing, nothing, nothing]


def _rol(word: Words, shift: int) -> Words:
    rotated: Words = word << np.uint32(shift) | word >> np.uint32(32 - shift)
    return rotated


def _hash(words: list[Words], start: Words) -> Words:
    """``jhash2`` of four words."""
    begin = start + np.uint32(JHASH_INITVAL + 16 & 0xFFFFFFFF)
    a, b, c = begin + words[0], begin + words[1], begin + words[2]
    for first, second, third in (_FIRST[:3], _FIRST[3:]):
        a = (a - c) ^ _rol(c, first)
        c = c + b
        b = (b - a) ^ _rol(a, second)
        a = a + c
        c = (c - b) ^ _rol(b, third)
        b = b + a
    a = a + words[3]
    c = (c ^ b) - _rol(b, _LAST[0])
    a = (a ^ c) - _rol(c, _LAST[1])
    b = (b ^ a) - _rol(a, _LAST[2])
    c = (c ^ b) - _rol(b, _LAST[3])
    a = (a ^ c) - _rol(c, _LAST[4])
    b = (b ^ a) - _rol(a, _LAST[5])
    return (c ^ b) - _rol(b, _LAST[6])
