# SPDX-License-Identifier: Apache-2.0
"""Reading what conntrack lists."""

from ipaddress import ip_address

from detector.base.family import Family
from detector.lab.truth import Pair, Truth, count_entries

LISTING = """\
ipv4     2 tcp      6 7199 CLOSE src=10.64.0.9 dst=198.51.100.7 sport=20001 dport=7 \
src=198.51.100.7 dst=203.0.113.70 sport=7 dport=20001 [ASSURED] mark=0 use=1
ipv4     2 udp      17 7199 src=10.64.0.9 dst=198.51.100.8 sport=20002 dport=7 [UNREPLIED] \
src=198.51.100.8 dst=203.0.113.71 sport=7 dport=20002 mark=0 use=1
ipv4     2 udp      17 7199 src=10.64.0.9 dst=198.51.100.8 sport=20003 dport=7 \
src=198.51.100.8 dst=203.0.113.71 sport=7 dport=20003 [ASSURED] mark=0 use=1
ipv4     2 udp      17 29 src=192.0.2.2 dst=192.0.2.1 sport=4242 dport=51820 \
src=192.0.2.1 dst=192.0.2.2 sport=51820 dport=4242 mark=0 use=1
ipv6     10 tcp     6 7199 ESTABLISHED src=fc00:bbbb:bbbb:bb01::9 dst=2001:db8::1 sport=1 dport=7 \
src=2001:db8::1 dst=fc00:bbbb:bbbb:bb01::9 sport=7 dport=1 [ASSURED] mark=0 use=1
"""


def test_entries_of_peers_are_counted_by_their_exit() -> None:
    """Translated, unreplied and untranslated entries of peers count; the tunnel's own outer flow does not."""
    peer, peer6 = ip_address("10.64.0.9"), ip_address("fc00:bbbb:bbbb:bb01::9")
    truth = Truth(count_entries(LISTING.splitlines(), {peer, peer6}))
    assert truth.counts == {
        Pair(peer, ip_address("203.0.113.70"), Family.IPV4, "tcp"): 1,
        Pair(peer, ip_address("203.0.113.71"), Family.IPV4, "udp"): 2,
        Pair(peer6, peer6, Family.IPV6, "tcp"): 1,
    }
    assert (truth.flows, truth.untranslated()) == (4, 1)
    assert truth.by(Family.IPV4) == 3
    assert truth.by(protocol="udp") == 2
