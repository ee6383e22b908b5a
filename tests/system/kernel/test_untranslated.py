# SPDX-License-Identifier: Apache-2.0
"""What leaves the relay with the peer's own address is counted for the peer, and is no exit."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from detector.base.family import Family
from detector.kernel.tables import Outcome, Watched
from tests.system.kernel.program import HOOK, SMALL, Program, attached
from tests.system.kernel.topology import LEAVE, Flow, Relay, peer, site

pytestmark = pytest.mark.root

NO_TRACKING = """
table inet untracked {
  chain pre {
    type filter hook prerouting priority -301
    iifname "tun0" ip daddr 198.18.0.0/24 notrack
    iifname "tun0" ip6 daddr 2001:db8:d::/120 notrack
  }
}
"""
# For somebody who never sends: without any rule of source NAT, conntrack is not asked at all.
OTHERS4 = f"ip saddr 10.66.99.99 {LEAVE} snat to 203.0.113.9"
OTHERS6 = f"ip6 saddr fd66::9999 {LEAVE} snat to 2001:db8:e::9"


def _untranslated(program: Program, slot: int) -> list[int]:
    return [int(number) for number in program.state(slot)["untranslated"]]


@pytest.mark.parametrize("version", [4, 6])
def test_private_addresses_that_leave_are_counted(relay: Relay, program: Program, version: int) -> None:
    """Flows without a rule are counted for their slot as private; those that are translated are not."""
    rule = f"ip{'' if version == 4 else '6'} saddr {peer(2, version)} {LEAVE} snat to "
    rule += "203.0.113.9" if version == 4 else "2001:db8:e::9"
    relay.rules(*[rule] * (version == 4), rules6=[rule] * (version == 6))
    left, kept = program.add(peer(1, version)), program.add(peer(2, version))
    relay.send(
        Flow(peer(number, version), site(at, version), 20000 + at) for number in (1, 2) for at in range(6)
    )
    assert _untranslated(program, left) == [0, 6]
    assert _untranslated(program, kept) == [0, 0]
    assert {slot for slot, _ in program.drain().flows} == {kept}
    family = Family.IPV4 if version == 4 else Family.IPV6
    assert program.outcomes()[family, Outcome.NOT_TRANSLATED] == 6
    assert int(program.evidence(left)["votes"]) == 0


def test_a_global_address_that_leaves_is_another_thing(relay: Relay, program: Program) -> None:
    """A peer with an address that the internet routes, as an own prefix, is counted apart."""
    with relay.owning(ip_address("192.0.2.77"), ip_address("2001:db8:77::7")) as own:
        relay.rules(OTHERS4, rules6=[OTHERS6])
        slots = [program.add(address) for address in own]
        relay.send(Flow(address, site(at, address.version), 20000 + at) for address in own for at in range(4))
        assert [_untranslated(program, slot) for slot in slots] == [[4, 0], [4, 0]]


@pytest.mark.parametrize("version", [4, 6])
def test_what_stays_inside_is_not_counted(relay: Relay, program: Program, version: int) -> None:
    """Flows that leave by a tunnel go to another peer, not to the internet."""
    relay.rules(OTHERS4, rules6=[OTHERS6])
    slot = program.add(peer(1, version))
    watched = Watched(program.maps)
    assert watched.add_tunnel(relay.out0)
    relay.send(Flow(peer(1, version), site(at, version), 20000 + at) for at in range(3))
    watched.remove_tunnel(relay.out0)
    assert _untranslated(program, slot) == [0, 0]
    relay.send(Flow(peer(1, version), site(at, version), 21000 + at) for at in range(3))
    assert _untranslated(program, slot) == [0, 3]


@pytest.mark.skipif(
    HOOK == "kprobe", reason="a packet without an entry is not confirmed, so it is not seen there"
)
@pytest.mark.parametrize("version", [4, 6])
def test_packets_without_an_entry_are_counted(relay: Relay, version: int) -> None:
    """Each packet that conntrack knows nothing of and that goes from a tunnel to none, for its slot."""
    relay.rules(f"{LEAVE} snat to 203.0.113.9", rules6=[f"{LEAVE} snat to 2001:db8:e::9"], tables=NO_TRACKING)
    with attached(relay, SMALL) as loaded:
        if loaded.hook == "kprobe":
            pytest.skip("this kernel has the other hook alone")
        program = Program.of(relay, loaded, SMALL)
        slot = program.add(peer(1, version))
        relay.send((Flow(peer(1, version), site(at, version), 20000 + at) for at in range(5)), times=3)
        relay.send(Flow(peer(1, version), site(0x300 + at, version), 20000 + at) for at in range(2))
        assert int(program.state(slot)["untracked"]) == 15
        assert program.drain().flows.total() == 2
        family = Family.IPV4 if version == 4 else Family.IPV6
        assert program.outcomes() == {(family, Outcome.COUNTED): 2}
        assert program.untracked() >= 15
