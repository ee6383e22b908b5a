# SPDX-License-Identifier: Apache-2.0
"""The destination predictor in the kernel is the one of `detector.predictors.kernel_hash`, for real NAT."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from detector.base.family import Address
from detector.kernel.tables import CHANCE_UNIT, set_pools
from detector.predictors.kernel_hash import kernel_exit
from tests.system.kernel.program import Program
from tests.system.kernel.topology import LEAVE, Entry, Flow, Relay, peer, site

pytestmark = pytest.mark.root

ZONE = """
table inet zones {
  chain pre {
    type filter hook prerouting priority -300
    ip saddr 10.66.0.0/16 ct zone set {zone}
    ip6 saddr fd66::/64 ct zone set {zone}
  }
}
"""
DIVERT = """
table ip divert {
  chain pre {
    type nat hook prerouting priority -100
    ip daddr 198.18.0.0/28 dnat to 198.18.77.1
  }
}
"""


@dataclass(frozen=True)
class Pool:
    """A range of exits."""

    first: Address
    last: Address

    @classmethod
    def of(cls, text: str) -> Pool:
        """From ``A-B``."""
        first, last = text.split("-")
        return cls(ip_address(first), ip_address(last))

    def __contains__(self, address: Address) -> bool:
        return address.version == self.first.version and int(self.first) <= int(address) <= int(self.last)

    @property
    def chance(self) -> int:
        """Of a hit, as the kernel counts it."""
        return CHANCE_UNIT // (int(self.last) - int(self.first) + 1)


def _send(relay: Relay, program: Program, version: int) -> tuple[list[int], list[Entry]]:
    """Fifteen votes of each of eight peers."""
    sources = [peer(number, version) for number in range(1, 9)]
    slots = program.add_all(sources)
    relay.send(
        Flow(source, site(number, version), 20000 + number) for source in sources for number in range(15)
    )
    return list(slots.values()), relay.listing()


def _tried_and_hit(program: Program, slots: list[int]) -> tuple[int, int, int]:
    """Trials, hits and the hits that chance gives (in units of 2^-24), over all slots."""
    rows = [program.evidence(slot) for slot in slots]
    names = ("destination_tried", "destination_hit", "destination_expected")
    tried, hit, expected = (sum(int(row[name]) for row in rows) for name in names)
    return tried, hit, expected


POOLS = {
    "a range of addresses": (4, "203.0.113.68-203.0.113.126"),
    "a range across a byte": (4, "203.0.113.200-203.0.114.90"),
    "a range in the last word": (6, "2001:db8:e::100-2001:db8:e::1ff"),
    "a network of 64 bits": (6, "2001:db8:e:5::-2001:db8:e:5:ffff:ffff:ffff:ffff"),
    "a range across words": (6, "2001:db8:e:5::-2001:db8:e:6:ffff:ffff:ffff:ffff"),
}


@pytest.mark.parametrize("flags", ["", "random", "fully-random"])
@pytest.mark.parametrize(("version", "text"), POOLS.values(), ids=POOLS)
def test_every_vote_hits_where_the_kernel_hashes(
    relay: Relay, program: Program, version: int, text: str, flags: str
) -> None:
    """Without `persistent` each vote is a hit, in the kernel and in Python, whatever the port does."""
    pool, rule = Pool.of(text), f"{LEAVE} snat to {text} {flags}"
    relay.rules(*[rule] * (version == 4), rules6=[rule] * (version == 6))
    set_pools(program.maps, [(pool.first, pool.last)])
    slots, listing = _send(relay, program, version)
    assert len(listing) == 120
    for entry in listing:
        assert entry.exit == kernel_exit(entry.source, entry.destination, pool.first, pool.last)
    assert _tried_and_hit(program, slots) == (120, 120, 120 * pool.chance)


@pytest.mark.parametrize(("version", "text"), POOLS.values(), ids=POOLS)
def test_persistent_hits_by_chance_alone(relay: Relay, program: Program, version: int, text: str) -> None:
    """With `persistent` each vote is tried, and hits exactly where Python's function agrees by accident."""
    pool, rule = Pool.of(text), f"{LEAVE} snat to {text} persistent"
    relay.rules(*[rule] * (version == 4), rules6=[rule] * (version == 6))
    set_pools(program.maps, [(pool.first, pool.last)])
    slots, listing = _send(relay, program, version)
    hits = sum(
        entry.exit == kernel_exit(entry.source, entry.destination, pool.first, pool.last) for entry in listing
    )
    assert hits < 20
    assert _tried_and_hit(program, slots) == (120, hits, 120 * pool.chance)


@pytest.mark.parametrize(("version", "text"), list(POOLS.values())[1:3])
def test_the_zone_is_part_of_the_hash(relay: Relay, program: Program, version: int, text: str) -> None:
    """In a conntrack zone each vote still hits, at exits that another zone would not give."""
    zone, pool, rule = 4711, Pool.of(text), f"{LEAVE} snat to {text}"
    relay.rules(
        *[rule] * (version == 4), rules6=[rule] * (version == 6), tables=ZONE.replace("{zone}", str(zone))
    )
    set_pools(program.maps, [(pool.first, pool.last)])
    slots, listing = _send(relay, program, version)
    assert {entry.zone for entry in listing} == {zone}
    for entry in listing:
        assert entry.exit == kernel_exit(entry.source, entry.destination, pool.first, pool.last, zone)
    assert _tried_and_hit(program, slots)[:2] == (120, 120)


def test_each_exit_is_tried_by_the_pool_that_holds_it(relay: Relay, program: Program) -> None:
    """Several pools of both families: each vote is tried once, and one whose exit is in none is not."""
    texts = ["203.0.113.1-203.0.113.16", "203.0.113.32-203.0.113.72", "203.0.113.80-203.0.113.99"]
    pools = [Pool.of(text) for text in texts]
    other = Pool.of("2001:db8:e::-2001:db8:e::ffff")
    ports = ("20000-20004", "20005-20009", "20010-20014")
    relay.rules(
        *(f"{LEAVE} udp sport {ports} snat to {text}" for ports, text in zip(ports, texts, strict=True))
    )
    set_pools(program.maps, [(pool.first, pool.last) for pool in (other, *pools[:2])])
    slots, listing = _send(relay, program, 4)
    assert sum(entry.exit in pools[2] for entry in listing) == 40
    assert _tried_and_hit(program, slots) == (80, 80, 40 * pools[0].chance + 40 * pools[1].chance)


def test_the_destination_is_the_one_behind_destination_nat(relay: Relay, program: Program) -> None:
    """Flows to many addresses that are redirected to one site are flows to that site."""
    pool = Pool.of("203.0.113.68-203.0.113.126")
    relay.rules(f"{LEAVE} snat to {pool.first}-{pool.last}", tables=DIVERT)
    set_pools(program.maps, [(pool.first, pool.last)])
    slots, listing = _send(relay, program, 4)
    assert {entry.destination for entry in listing} == {ip_address("198.18.77.1")}
    assert _tried_and_hit(program, slots)[:2] == (8, 8)
    assert [program.trials(slot).same_destination for slot in slots] == [(14, 14)] * 8
