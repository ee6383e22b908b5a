# SPDX-License-Identifier: Apache-2.0
"""Pools that nobody told: right where the exits can tell, nothing where they cannot."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from detector.base.family import Address
from detector.base.ranges import AddressRange, parse_pool
from detector.predictors.guess import Point, guessed_ranges, hashed_ranges, joined
from detector.predictors.kernel_hash import kernel_exit, source_hash

SITE = ip_address("198.51.100.7")
SITE6 = ip_address("2001:db8::7")


def served(pool: str, peers: int, network: str = "10.64.0") -> list[Point]:
    """Peers of a persistent range: the hash of each, and its exit."""
    ends = parse_pool(pool)
    six = ends.first.version == 6
    tunnels = [ip_address(f"fd00::{n:x}" if six else f"{network}.{n}") for n in range(1, peers + 1)]
    site = SITE6 if six else SITE
    return [
        (source_hash(one), kernel_exit(one, site, ends.first, ends.last, persistent=True)) for one in tunnels
    ]


def exits(points: list[Point]) -> list[Address]:
    """The exits in use."""
    return [exit_ for _, exit_ in points]


def pools(*texts: str) -> list[AddressRange]:
    """Ranges by their texts."""
    return [parse_pool(text) for text in texts]


A, NEXT_TO_A, FAR = "203.0.113.68-203.0.113.83", "203.0.113.84-203.0.113.99", "203.0.113.130-203.0.113.176"


@pytest.mark.parametrize(
    ("points", "truth"),
    [
        (served(A, 40), [A]),
        (served(A, 12), [A]),
        (served(A, 40) + served(NEXT_TO_A, 40, "10.65.0"), [A, NEXT_TO_A]),
        (served(A, 40) + served(FAR, 40), [A, FAR]),
        ([*served(A, 40), (7, ip_address("203.0.113.40"))], [A]),
        ([*served(A, 40), (7, ip_address("203.0.113.7"))], [A]),
        (served("203.0.112.0/22", 200), ["203.0.112.0/22"]),
        (served("2001:db8:5::50-2001:db8:5::5f", 40), ["2001:db8:5::50-2001:db8:5::5f"]),
    ],
)
def test_the_hash_tells_the_ends(points: list[Point], truth: list[str]) -> None:
    """Pools side by side, two relays, strays, ends that nobody got: what the kernel chose from."""
    assert hashed_ranges(points) == pools(*truth)


def test_exits_that_follow_no_hash_make_no_range() -> None:
    """Of a hundred relays that choose by a secret or by chance none looks like the kernel's hash."""
    draw = random.Random(5)  # noqa: S311 - repeatable on purpose
    for relay in range(100):
        size = draw.choice([2, 5, 16, 59, 250])
        many = draw.choice([8, 40, 300])
        first = int(ip_address("203.0.113.2"))
        sticky = [ip_address(first + draw.randrange(size) ** (1 + relay % 2) % size) for _ in range(many)]
        assert hashed_ranges([(draw.getrandbits(32), exit_) for exit_ in sticky]) == []


@pytest.mark.parametrize("peers", [4, 12, 40])
def test_a_guess_stays_within_the_pool(peers: int) -> None:
    """Without a hash, the range goes from the lowest to the highest exit in use."""
    used = exits(served(A, peers))
    assert guessed_ranges(used) == [AddressRange(min(used, key=int), max(used, key=int))]


@pytest.mark.parametrize("stray", ["203.0.113.40", "203.0.113.7", "203.0.113.120", "192.0.2.1", "10.0.0.1"])
def test_a_stray_exit_does_not_widen_a_range(stray: str) -> None:
    """One flow of the relay's own, or a line that was cut."""
    used = exits(served(A, 60))
    assert guessed_ranges([*used, ip_address(stray)]) == guessed_ranges(used)


def test_a_gap_is_judged_by_the_density() -> None:
    """Some way apart: two pools where each is full, one where every third address is in use."""
    first = int(ip_address("203.0.113.1"))
    full = [ip_address(first + n) for n in (*range(16), *range(39, 55))]
    sparse = [ip_address(first + n) for n in (*range(0, 96, 3), *range(116, 212, 3))]
    assert len(guessed_ranges(full)) == 2
    assert len(guessed_ranges(sparse)) == 1


def test_lone_exits_and_wide_prefixes_make_no_range() -> None:
    """One address is no pool, and addresses drawn from a /64 show no end."""
    draw = random.Random(3)  # noqa: S311
    prefix = int(ip_address("2001:db8::"))
    assert guessed_ranges([ip_address("203.0.113.1")]) == []
    assert guessed_ranges(ip_address(prefix + draw.getrandbits(64)) for _ in range(50)) == []
    assert guessed_ranges([]) == []


def test_what_the_hash_tells_goes_before_a_guess() -> None:
    """A guess over a range that is sure is left out, another one stays."""
    sure = pools(A, NEXT_TO_A)
    assert joined(sure, pools("203.0.113.68-203.0.113.99", FAR)) == pools(A, NEXT_TO_A, FAR)
