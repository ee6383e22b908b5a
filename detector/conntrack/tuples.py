# SPDX-License-Identifier: Apache-2.0
"""The two tuples of each line of conntrack: original and reply, as columns.

    src=PEER dst=SITE sport=S dport=D ... src=SITE' dst=EXIT sport=D' dport=S' ...

A line has exactly two ``src=`` and two ``dst=``. More than two are two lines that ran into each other, fewer
are the rest of one; a protocol with ports that has none is cut. None of those says where a flow left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.analysis.kernel_columns import Packed
from detector.conntrack.addresses import (
    Block,
    Mask,
    PackedAddresses,
    Places,
    addresses_at,
    numbers_at,
    same_words,
)

TCP, UDP = 6, 17
_PORTED = np.array([TCP, 33, UDP, 132, 136])  # DCCP, SCTP, UDP-Lite
_ICMP = np.array([1, 58])
_GRE = 47
_ICMP_ID = re.compile(rb"[ \t]type=(\d{1,3})[ \t]+code=(\d{1,3})(?:[ \t]+id=(\d{1,5}))?(?=[ \t\r\n])")
_GRE_KEY = re.compile(rb"[ \t]srckey=(0x[0-9a-fA-F]{1,8})[ \t]+dstkey=0x[0-9a-fA-F]{1,8}(?=[ \t\r\n])")
_STAMP = len("Mon Nov 23 23:33:51 2026")


@dataclass(frozen=True, slots=True)
class Tuples:
    """What a block's lines say beyond their heads, n lines.

    Attributes:
        good: shape (n,): the line has two whole tuples.
        source, destination, exit: shape (n, 16); the destination is that after destination NAT.
        four: shape (n,): the flow is IPv4.
        port: source port, or what stands for it (ICMP identifier, GRE key).
        service: destination port that the peer chose, 0 where there is none.
        changed: source port that the site sees, 0 where there is none.
    """

    good: Mask
    source: Packed
    destination: Packed
    exit: Packed
    four: Mask
    port: NDArray[np.int64]
    service: NDArray[np.int64]
    changed: NDArray[np.int64]


class Words:
    """Where the words before each ``=`` of a block are."""

    def __init__(self, block: Block) -> None:
        self._block = block
        characters = block.characters
        self._equals = np.flatnonzero(characters == ord("="))
        at = self._equals
        self._three = (
            characters[at - 1].astype(np.uint32)
            | characters[at - 2].astype(np.uint32) << np.uint32(8)
            | characters[at - 3].astype(np.uint32) << np.uint32(16)
        )
        self._before = characters[at - 4]

    def after(self, word: bytes) -> Places:
        """The places behind each ``WORD=`` that stands behind a blank (or a bracket, if the word has one)."""
        last = word[-3:]
        which = self._three == (last[2] | last[1] << 8 | last[0] << 16)
        if len(word) == len(last):
            which &= (self._before == ord(" ")) | (self._before == ord("\t"))
            places: Places = self._equals[which] + 1
            return places
        found: Places = self._equals[which]
        found = found[found > len(word)]
        found = found[self._block.says(found - len(word), word[:-3])]
        before = self._block.characters[found - len(word) - 1]
        found = found[(before == ord(" ")) | (before == ord("\t"))]
        return found + 1


def tuples_of(block: Block, words: Words, protocol: NDArray[np.int64], cache: PackedAddresses) -> Tuples:
    """The tuples of every line.

    Args:
        block: n lines.
        words: of that block.
        protocol: shape (n,), negative where a line has none.
        cache: of IPv6 addresses.
    """
    n = len(block.ends)
    sources, destinations = words.after(b"src"), words.after(b"dst")
    lines = block.line_of(sources)
    twice = (np.bincount(lines, minlength=n) == 2) & (protocol >= 0)
    destination_lines = block.line_of(destinations)
    twice &= np.bincount(destination_lines, minlength=n) == 2
    rows = np.flatnonzero(twice)
    source = sources[twice[lines]].reshape(-1, 2)
    destination = destinations[twice[destination_lines]].reshape(-1, 2)
    good = (source[:, 0] < destination[:, 0]) & (destination[:, 0] < source[:, 1])
    good &= source[:, 1] < destination[:, 1]
    peer, _, is_peer, four = addresses_at(block, source[:, 0], cache)
    server, _, is_server, server_four = addresses_at(block, source[:, 1], cache)
    site_ends, is_site, site_four = _sites(block, destination[:, 0], source[:, 1], server_four, cache)
    exit_, exit_ends, is_exit, exit_four = addresses_at(block, destination[:, 1], cache)
    good &= is_peer & is_site & is_server & is_exit
    good &= (four == site_four) & (four == server_four) & (four == exit_four)
    port, service, changed, named = _ports(block, protocol[rows], site_ends, exit_ends)
    return _spread(n, rows, good & named, four, (peer, server, exit_), (port, service, changed))


def _sites(
    block: Block, places: Places, server: Places, server_four: Mask, cache: PackedAddresses
) -> tuple[Places, Mask, Mask]:
    """Where the sites that peers asked for end, whether they are addresses, and whether IPv4.

    Nearly always the same text is the reply's source, which is known; else destination NAT changed it.
    """
    ends, same = same_words(block, places, server)
    same &= server_four
    good, four = same.copy(), same.copy()
    others = np.flatnonzero(~same)
    if len(others):
        _, ends[others], good[others], four[others] = addresses_at(block, places[others], cache)
    return ends, good, four


def _ports(
    block: Block, protocol: NDArray[np.int64], site_ends: Places, exit_ends: Places
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Mask]:
    """Source port, service and changed port of lines, and whether each has what its protocol asks for."""
    port, service, changed = (np.zeros(len(protocol), np.int64) for _ in range(3))
    named = np.ones(len(protocol), np.bool_)
    ported = np.flatnonzero(np.isin(protocol, _PORTED))
    port[ported], service[ported], there = _pair(block, site_ends[ported])
    _, changed[ported], back = _pair(block, exit_ends[ported])
    named[ported] = there & back
    others = np.flatnonzero(np.isin(protocol, _ICMP) | (protocol == _GRE))
    for row, site, exit_ in zip(
        others.tolist(), site_ends[others].tolist(), exit_ends[others].tolist(), strict=True
    ):
        pattern = _GRE_KEY if protocol[row] == _GRE else _ICMP_ID
        found = pattern.match(block.text, site)
        named[row] = bool(found and pattern.match(block.text, exit_))
        if found:
            port[row] = int(found[1], 16) if protocol[row] == _GRE else int(found[3] or 0)
    return port, service, changed, named


def _pair(block: Block, places: Places) -> tuple[NDArray[np.int64], NDArray[np.int64], Mask]:
    """`` sport=A dport=B`` at each place: both numbers, and whether they are there."""
    first, ends, good = numbers_at(block, places + len(" sport="), 5)
    good &= block.says(places, b" sport=") & block.says(ends, b" dport=")
    second, ends, there = numbers_at(block, ends + len(" dport="), 5)
    good &= there & (block.characters[ends] <= ord(" ")) & (first < 1 << 16) & (second < 1 << 16)
    return first, second, good


def _spread(
    n: int,
    rows: Places,
    good: Mask,
    four: Mask,
    addresses: tuple[Packed, Packed, Packed],
    numbers: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
) -> Tuples:
    """Columns of some rows as columns of all n lines."""
    if len(rows) == n:
        return Tuples(good, *addresses, four, *numbers)
    every = np.zeros(n, np.bool_)
    every[rows] = good
    every_four = np.zeros(n, np.bool_)
    every_four[rows] = four
    packed = [np.zeros((n, 16), np.uint8) for _ in addresses]
    for column, some in zip(packed, addresses, strict=True):
        column[rows] = some
    values = [np.zeros(n, np.int64) for _ in numbers]
    for value, part in zip(values, numbers, strict=True):
        value[rows] = part
    return Tuples(every, packed[0], packed[1], packed[2], every_four, values[0], values[1], values[2])


def zones_of(block: Block, words: Words) -> NDArray[np.uint32]:
    """The conntrack zone of each line, 0 where it names none."""
    zones = np.zeros(len(block.ends), np.uint32)
    # A line with a zone for each direction: that of the original one stays.
    for word in (b"zone-reply", b"zone-orig", b"zone"):
        places = words.after(word)
        values, _, good = numbers_at(block, places, 5)
        zones[block.line_of(places[good])] = values[good] & 0xFFFF
    return zones


def stamps_of(block: Block, words: Words, word: bytes) -> tuple[Places, list[bytes]]:
    """``[start=Mon Nov 23 23:33:51 2026]``: the lines that have it, and the dates."""
    places = words.after(word)
    texts = [block.text[place : place + _STAMP] for place in places.tolist()]
    return block.line_of(places), texts


def ages_of(block: Block, words: Words) -> tuple[Places, NDArray[np.int64]]:
    """``delta-time=12``: the lines that have it, and the seconds."""
    places = words.after(b"delta-time")
    ages, _, good = numbers_at(block, places, 12)
    return block.line_of(places[good]), ages[good]
