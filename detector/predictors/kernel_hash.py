# SPDX-License-Identifier: Apache-2.0
"""The kernel's Jenkins hash, and the exit that the kernel's source NAT chooses with it.

Everything here is arithmetic on public values: the kernel mixes in no secret (docs/leak-modes.md §2), so
whoever knows a tunnel address knows the exit. NumPy-free, because the sensor computes predictions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from detector.base.family import Address

JHASH_INITVAL = 0xDEADBEEF
_U32 = 0xFFFFFFFF


def _rol(word: int, shift: int) -> int:
    return (word << shift | word >> (32 - shift)) & _U32


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    """``__jhash_mix`` of include/linux/jhash.h."""
    a = (a - c & _U32) ^ _rol(c, 4)
    c = c + b & _U32
    b = (b - a & _U32) ^ _rol(a, 6)
    a = a + c & _U32
    c = (c - b & _U32) ^ _rol(b, 8)
    b = b + a & _U32
    a = (a - c & _U32) ^ _rol(c, 16)
    c = c + b & _U32
    b = (b - a & _U32) ^ _rol(a, 19)
    a = a + c & _U32
    c = (c - b & _U32) ^ _rol(b, 4)
    b = b + a & _U32
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    """``__jhash_final`` of include/linux/jhash.h."""
    c = (c ^ b) - _rol(b, 14) & _U32
    a = (a ^ c) - _rol(c, 11) & _U32
    b = (b ^ a) - _rol(a, 25) & _U32
    c = (c ^ b) - _rol(b, 16) & _U32
    a = (a ^ c) - _rol(c, 4) & _U32
    b = (b ^ a) - _rol(a, 14) & _U32
    return (c ^ b) - _rol(b, 24) & _U32


def _jenkins(words: Sequence[int], start: int) -> int:
    """The rounds that `jhash` and `jhash2` share: three words a round, the last ones in the final mix."""
    a = b = c = start & _U32
    left = list(words)
    while len(left) > 3:
        a, b, c = _mix(a + left[0] & _U32, b + left[1] & _U32, c + left[2] & _U32)
        del left[:3]
    if not left:
        return c
    left += [0] * (3 - len(left))
    return _final(a + left[0] & _U32, b + left[1] & _U32, c + left[2] & _U32)


def jhash2(words: Sequence[int], initval: int = 0) -> int:
    """``jhash2`` of include/linux/jhash.h: the hash of an array of 32-bit words."""
    return _jenkins(words, JHASH_INITVAL + 4 * len(words) + initval)


def jhash(data: bytes, initval: int = 0) -> int:
    """``jhash`` of include/linux/jhash.h: the hash of bytes, as nft's ``jhash`` expression takes it.

    Whole rounds load words as the CPU does; the last one to twelve bytes are put together little-endian
    on every CPU.
    """
    rounds = 12 * max(0, (len(data) - 1) // 12)
    tail = data[rounds:] + bytes(-len(data) % 4)
    words = [int.from_bytes(data[i : i + 4], sys.byteorder) for i in range(0, rounds, 4)]
    words += [int.from_bytes(tail[i : i + 4], "little") for i in range(0, len(tail), 4)]
    return _jenkins(words, JHASH_INITVAL + len(data) + initval)


def reciprocal_scale(value: int, width: int) -> int:
    """``reciprocal_scale`` of include/linux/math.h: a 32-bit value brought to 0..width-1."""
    return value * width >> 32


def register(data: bytes) -> bytes:
    """One field of an nft concatenation: padded with zeros to whole 32-bit registers."""
    return data + bytes(-len(data) % 4)


def nft_jhash(fields: Sequence[bytes], modulus: int, seed: int = 0, offset: int = 0) -> int:
    """The number that nft's ``jhash F1 . F2 ... mod MODULUS seed SEED offset OFFSET`` gives.

    Args:
        fields: the fields in order, each in network byte order. A single field is hashed with its own
            length, the fields of a concatenation each padded to 32 bits (``nft_jhash_eval``).
        modulus: at least 1.
        seed: the seed of the rule, 0..2^32-1.
        offset: added to the result.
    """
    data = fields[0] if len(fields) == 1 else b"".join(map(register, fields))
    return reciprocal_scale(jhash(data, seed), modulus) + offset


def _loaded_words(address: Address) -> list[int]:
    """An address as four words as the CPU loads them from memory, zeros after an IPv4 address."""
    packed = address.packed + bytes(16 - len(address.packed))
    return [int.from_bytes(packed[i : i + 4], sys.byteorder) for i in range(0, 16, 4)]


def _host_words(address: Address) -> list[int]:
    """An address as its words in host order: one for IPv4, four for IPv6."""
    packed = address.packed
    return [int.from_bytes(packed[i : i + 4], "big") for i in range(0, len(packed), 4)]


def source_hash(source: Address, initval: int = 0) -> int:
    """The 32-bit hash of a source address; over 2^32 it is the fraction of every pool where the peer sits."""
    return jhash2(_loaded_words(source), initval)


def position(
    hashed: int, pool_first: Address, pool_last: Address, target: Sequence[int] = (0, 0, 0, 0)
) -> Address:
    """The address of a pool at which a hash points, word by word as ``find_best_ips_proto()`` walks it.

    Args:
        hashed: 32-bit hash of the flow's source.
        pool_first: first address of the range.
        pool_last: last address of the range, not below `pool_first`.
        target: the destination's words, mixed in after each word; zeros for ``persistent``.
    """
    value, above = 0, True  # above: all earlier words equal those of the last address
    for low, high, mixed in zip(_host_words(pool_first), _host_words(pool_last), target, strict=False):
        base, width = (low, high - low + 1 & _U32) if above else (0, _U32)
        word = base + reciprocal_scale(hashed, width) & _U32
        value = value << 32 | word
        above = above and word == high
        hashed ^= mixed
    return IPv4Address(value) if pool_first.version == 4 else IPv6Address(value)


def kernel_exit(
    source: Address,
    destination: Address | None,
    pool_first: Address,
    pool_last: Address,
    zone: int = 0,
    persistent: bool = False,
) -> Address:
    """The exit that ``find_best_ips_proto()`` of net/netfilter/nf_nat_core.c chooses from a range.

    Args:
        source: the peer's tunnel address.
        destination: where the flow goes; None stands for a rule with ``persistent``.
        pool_first: first address of the range, of the source's family.
        pool_last: last address of the range, not below `pool_first`.
        zone: conntrack zone of the flow.
        persistent: the rule has the ``persistent`` flag, so neither destination nor zone counts.
    """
    if pool_first == pool_last:
        return pool_first
    if persistent or destination is None:
        return position(source_hash(source), pool_first, pool_last)
    target = _loaded_words(destination)
    last_word = 0 if source.version == 4 else 3
    return position(source_hash(source, target[last_word] ^ zone), pool_first, pool_last, target)
