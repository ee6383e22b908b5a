# SPDX-License-Identifier: Apache-2.0
"""Which function of the tunnel address explains the exits, on relays whose rule is known."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from detector.base.family import Address
from detector.predictors import NAMES
from detector.predictors.fit import LEAST_PERSONS, LOG_LEVEL, Fit, Fitter
from detector.predictors.kernel_hash import kernel_exit, nft_jhash
from detector.predictors.pool import MOST_LISTED, ExitPool, HashRule

NETWORK = 0x0A400000
FIRST = ip_address("203.0.113.1")
POOL = ExitPool(FIRST, ip_address("203.0.113.59"), origin="rule 1")
Chooser = Callable[[Address, int], int]


def scattered(count: int, bits: int = 16) -> list[Address]:
    """Tunnel addresses anywhere in a network."""
    drawn = random.Random(count).sample(range(256, 2**bits), count)  # noqa: S311
    return [IPv4Address(NETWORK + host) for host in drawn]


def following(count: int = 0) -> list[Address]:
    """Tunnel addresses that follow each other."""
    return [IPv4Address(NETWORK + 2 + host) for host in range(count)]


def exits_of(tunnels: list[Address], choose: Chooser, first: Address = FIRST) -> list[Address]:
    """The exits at the positions that a function gives."""
    return [type(first)(int(first) + choose(one, row)) for row, one in enumerate(tunnels)]


def by_kernel(tunnel: Address) -> int:
    """The position that the kernel chooses with persistent."""
    return int(kernel_exit(tunnel, None, POOL.first, POOL.last)) - int(FIRST)


def held(tunnels: list[Address], exits: list[Address], *pools: ExitPool) -> dict[str, Fit]:
    """The fits that hold, by predictor."""
    return {one.predictor: one for one in Fitter().fit(tunnels, exits, pools) if one.holds}


@pytest.mark.parametrize(
    ("tunnels", "choose", "name"),
    [
        (following(40), lambda _, row: (row + 7) % 59, "modulo"),
        (following(300), lambda one, _: (int(one) & 255) % 59, "modulo"),
        (scattered(60), lambda one, _: (int(one) - NETWORK) % 59, "modulo"),
        (scattered(60), lambda one, _: int(one) % 59, "modulo"),
        (scattered(60), lambda one, _: zlib.crc32(one.packed) % 59, "crc32"),
        (scattered(60), lambda one, _: zlib.crc32(str(one).encode()) % 59, "crc32"),
        (scattered(200), lambda one, _: (int(one) - NETWORK) * 59 >> 16, "linear"),
        (scattered(200), lambda one, _: (int(one) - NETWORK) * 59 >> 17, "linear"),
        (scattered(200), lambda one, _: 58 - ((int(one) - NETWORK) * 59 >> 16), "linear"),
        (scattered(60), lambda one, _: by_kernel(one), "kernel_persistent"),
    ],
    ids=["nth", "octet", "network", "address", "crc", "text", "blocks", "half empty", "backwards", "kernel"],
)
def test_scripts_without_a_secret_are_named(tunnels: list[Address], choose: Chooser, name: str) -> None:
    """Each is found, explains nearly everybody, and is the one that explains best."""
    found = held(tunnels, exits_of(tunnels, choose), POOL)
    assert found[name].hit >= 0.85 * found[name].tried
    assert max(found.values(), key=lambda one: one.hit / one.tried).predictor == name
    assert found[name].rule == "rule 1"


def test_independent_exits_fit_nothing() -> None:
    """Neither where exits are even, nor where one of them has half of the persons, nor on one exit alone."""
    draw = random.Random(5)  # noqa: S311
    for number in range(300):
        tunnels = scattered(draw.choice((5, 12, 60)) + number % 3)
        size = draw.choice((2, 4, 16, 59))
        weights = [draw.paretovariate(1) for _ in range(size)]
        exits = exits_of(tunnels, lambda *_, s=size, w=weights: draw.choices(range(s), w)[0])
        assert not held(tunnels, exits, POOL, ExitPool(FIRST, exits[0]))
    assert not held(following(60), exits_of(following(60), lambda *_: 3), POOL)


def test_each_rule_over_the_same_addresses_is_tried() -> None:
    """Two ranges that a mark tells apart: the second one chose, and it is the second that is named."""
    tunnels = scattered(60)
    second = ExitPool(FIRST, ip_address("203.0.113.30"), origin="rule 2")
    exits: list[Address] = [kernel_exit(one, None, second.first, second.last) for one in tunnels]
    found = [one for one in Fitter().fit(tunnels, exits, [POOL, second]) if one.holds]
    assert [(one.predictor, one.rule, one.hit) for one in found] == [("kernel_persistent", "rule 2", 60)]


def test_half_of_the_persons_is_enough_and_they_are_named() -> None:
    """Only those whose exit is the one that the predictor gives are hits."""
    tunnels = scattered(80)
    draw = random.Random(9)  # noqa: S311
    exits = exits_of(tunnels, lambda *_: draw.randrange(59))
    exits[:40] = [kernel_exit(one, None, POOL.first, POOL.last) for one in tunnels[:40]]
    one = held(tunnels, exits, POOL)["kernel_persistent"]
    assert one.hits[:40] == tuple(range(40))
    assert len(one.hits) == one.hit < 46


def test_a_part_of_the_persons_is_found_among_those_who_are_sure() -> None:
    """Eight exits, a tenth of the persons on the rule: too few among all, plain among those who keep one."""
    tunnels = scattered(200)
    pool = ExitPool(FIRST, ip_address("203.0.113.8"))
    draw = random.Random(3)  # noqa: S311
    exits = exits_of(tunnels, lambda *_: draw.randrange(8))
    exits[:20] = [kernel_exit(one, None, pool.first, pool.last) for one in tunnels[:20]]
    sure = [row < 20 or row % 40 == 0 for row in range(200)]

    def found(*given: list[bool]) -> dict[str, Fit]:
        fits = Fitter().fit(tunnels, exits, [pool], tunnels, *given)
        return {one.predictor: one for one in fits if one.holds}

    assert "kernel_persistent" not in found()
    assert found(sure)["kernel_persistent"].hits[:20] == tuple(range(20))


def test_lists_prefixes_and_several_ranges() -> None:
    """A map with a seed, a network that is kept, and positions that go on in a second range."""
    tunnels = scattered(60)
    listed = tuple(ip_address(f"198.51.100.{3 * n % 16 + 1}") for n in range(16))
    rule = HashRule((None,), 16, 99)
    by_seed = ExitPool(min(listed, key=int), max(listed, key=int), listed, rule)
    exits = [listed[nft_jhash([one.packed], 16, 99)] for one in tunnels]
    assert list(held(tunnels, exits, by_seed)) == ["seeded_jhash"]
    whole = ExitPool(ip_address("192.0.2.64"), ip_address("192.0.2.127"))
    found = held(tunnels, exits_of(tunnels, lambda one, _: int(one) & 63, whole.first), whole)
    assert min(found, key=NAMES.index) == "netmap"
    parts = ((FIRST, ip_address("203.0.113.8")), (ip_address("203.0.113.100"), ip_address("203.0.113.107")))
    split = ExitPool(FIRST, parts[1][1], parts=parts)
    walked = [split.at(int(one) % 16) for one in tunnels]
    assert "modulo" in held(tunnels, [one for one in walked if one is not None], split)


def test_pools_are_arithmetic() -> None:
    """A pool of 2^64 answers at once; what is at a position is at that position, and the ends are ends."""
    huge = ExitPool(ip_address("2001:db8::"), ip_address("2001:db8::ffff:ffff:ffff:ffff"))
    assert huge.size == 2**64
    assert huge.at(2**63) == ip_address("2001:db8::8000:0:0:0")
    assert huge.index(int(huge.last)) == 2**64 - 1
    assert huge.at(2**64) is None and huge.at(-1) is None and huge.index(int(huge.last) + 1) is None
    parts = ((FIRST, ip_address("203.0.113.3")), (ip_address("203.0.113.9"), ip_address("203.0.113.10")))
    split = ExitPool(FIRST, parts[1][1], parts=parts)
    assert [split.index(int(split.at(place) or FIRST)) for place in range(split.size)] == [0, 1, 2, 3, 4]
    assert split.index(int(FIRST) + 5) is None
    tunnels: list[Address] = [IPv6Address(2**120 + 3 * row) for row in range(30)]
    exits = [one for one in (huge.at(int(tunnel) % 2**64 + 5) for tunnel in tunnels) if one is not None]
    assert held(tunnels, exits, huge)["modulo"].hit == 30


def test_a_map_that_is_too_long_is_not_walked() -> None:
    """At the cap it is; one address beyond it is not."""
    tunnels = scattered(30)
    for length, walked in ((MOST_LISTED, True), (MOST_LISTED + 1, False)):
        listed = tuple(IPv4Address(int(FIRST) + n) for n in range(length))
        pool = ExitPool(listed[0], listed[-1], listed)
        exits: list[Address] = [listed[int(one) % length] for one in tunnels]
        assert ("modulo" in held(tunnels, exits, pool)) == walked


def test_ranks_count_everyone() -> None:
    """The n-th peer of the relay has the n-th exit, also where not all of them were seen."""
    relay = scattered(100)
    order = {one: rank for rank, one in enumerate(sorted(relay))}
    seen = relay[::3]
    exits = exits_of(seen, lambda one, _: order[one] % 59)
    [found] = [one for one in Fitter().fit(seen, exits, [POOL], relay) if one.predictor == "modulo"]
    assert found.hit == len(seen)


def test_what_holds_needs_persons_and_more_than_a_trifle() -> None:
    """Each of the thresholds, on both sides."""
    sure = Fit("modulo", "", 59, 40, LEAST_PERSONS, 1e-9)
    assert sure.holds
    assert not replace(sure, hit=LEAST_PERSONS - 1).holds
    many = Fit("modulo", "", 59, 100_000, 6_550, 0.0166)
    assert many.log_p < LOG_LEVEL and many.excess < 0.05 and not many.holds
    assert replace(many, hit=6_580).holds
    assert not replace(sure, hypotheses=10**40).holds
    assert not replace(sure, tests=10**40).holds


def test_the_second_time_gives_the_same() -> None:
    """A fitter remembers hashes and nothing that changes what it says."""
    tunnels = scattered(50)
    exits = [kernel_exit(one, None, POOL.first, POOL.last) for one in tunnels]
    fitter = Fitter()
    assert fitter.fit(tunnels, exits, [POOL]) == fitter.fit(tunnels, exits, [POOL])
    assert fitter.fit(tunnels[:9], exits[:9], [POOL]) == Fitter().fit(tunnels[:9], exits[:9], [POOL])
