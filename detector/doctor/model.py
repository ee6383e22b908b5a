# SPDX-License-Identifier: Apache-2.0
"""Whether this relay is one that verdicts are about: peers of their own addresses, translated by the kernel.

A relay outside of that is no fault of the host, so nothing here keeps the service from running; but what the
service says of it would be about something else, and that is said here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pyroute2 import IPRoute

from detector.base.errors import ExitprintError
from detector.base.family import Address, Family
from detector.doctor.check import Finding, Host, note, ok
from detector.nat.live import read_live
from detector.nat.model import RuleSet
from detector.nat.pools import effective_pools
from detector.wireguard.model import InterfacePeers
from detector.wireguard.read import read_peers

_EGRESS = 0xFFFFFFF3  # ffff:fff3, where clsact runs filters on what leaves (linux/pkt_sched.h)
_FEWEST = 3  # peers from which a common address is no accident
_DOCS = "docs/limits.md"


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides it.

    Attributes:
        holders: how many peers have each tunnel address, over all interfaces.
        peers: how many there are.
        idle: peers without an allowed-ip.
        rules: source-NAT rules.
        programs: interfaces with eBPF programs of others on packets that leave or come in.
        untracked: families that this kernel follows only where a NAT rule wants it.
    """

    holders: Counter[Address] = field(default_factory=Counter, repr=False)
    peers: int = 0
    idle: int = 0
    rules: RuleSet = field(default_factory=RuleSet)
    programs: tuple[str, ...] = ()
    untracked: frozenset[Family] = frozenset()


def model(host: Host) -> Finding:
    """The relay as it is, against what verdicts take for granted."""
    if os.geteuid():
        return note("not looked at: peers are root's to read", "sudo exitprint doctor")
    if host.config.namespace_path is not None:
        name = host.config.network_namespace
        return note("not looked at: it is in another namespace", f"ip netns exec {name} exitprint doctor")
    try:
        rules = read_live()
    except ExitprintError:
        rules = RuleSet()  # another check tells
    tracked_by_rule = not host.has("sys/kernel/btf/vmlinux") or not _has_netfilter_links(host)
    untracked = frozenset({Family.IPV6}) if tracked_by_rule else frozenset[Family]()
    read = read_peers(host.config.wireguard).interfaces
    return judged(facts_of(read, rules, _foreign_programs(), untracked))


def facts_of(
    interfaces: Iterable[InterfacePeers],
    rules: RuleSet,
    programs: tuple[str, ...],
    untracked: frozenset[Family],
) -> Facts:
    """What decides it, of what was read."""
    holders: Counter[Address] = Counter()
    peers = idle = 0
    for interface in interfaces:
        for allowed in interface.peers.values():
            peers += 1
            idle += not allowed
            holders.update({one.address for one in allowed if not one.is_network})
    return Facts(holders, peers, idle, rules, programs, untracked)


def judged(facts: Facts) -> Finding:
    """All that is outside the model, or that nothing is."""
    found = [
        text
        for text in (_shared(facts), _translated_elsewhere(facts), _twice(facts), *_unseen(facts))
        if text
    ]
    if found:
        return note("; ".join(found), f"read {_DOCS}: the verdict is about something else here")
    if not facts.peers:
        return ok("no peer yet, so nothing to tell")
    return ok("peers have addresses of their own, and the kernel's NAT gives them their exits")


def _shared(facts: Facts) -> str:
    """Peers that nobody can tell apart by their tunnel address."""
    sharing = sum(count for count in facts.holders.values() if count > 1)
    if facts.peers >= _FEWEST and 2 * sharing > facts.peers:
        return f"{sharing} of {facts.peers} peers share tunnel addresses: flows do not tell who they are of"
    if facts.idle >= _FEWEST and 2 * facts.idle > facts.peers:
        return f"{facts.idle} of {facts.peers} peers have no tunnel address of their own (allowed-ips)"
    return ""


def _families(facts: Facts) -> set[Family]:
    return {Family.IPV4 if address.version == 4 else Family.IPV6 for address in facts.holders}


def _translated_elsewhere(facts: Facts) -> str:
    """Peers of private addresses, and no rule that translates them."""
    private = {address.version for address in facts.holders if address.is_private}
    ruled = {
        version for rule in facts.rules.rules for version in (family.version for family in rule.families)
    }
    missing = sorted(private - ruled) if not facts.rules.not_understood else []
    if not missing:
        return ""
    names = " and ".join(f"IPv{version}" for version in missing)
    return f"no source-NAT rule for {names}: eBPF, user space or another machine would have to translate it"


def _twice(facts: Facts) -> str:
    """Exits that are private themselves."""
    pools = effective_pools(facts.rules)
    firsts = [part.first for pool in pools for part in pool.ranges]
    if any(first.is_private and not _is_documentation(first) for first in firsts):
        return "exits are private addresses: another machine translates once more, and its choice is not seen"
    return ""


def _unseen(facts: Facts) -> Iterable[str]:
    if facts.programs:
        yield (f"eBPF programs of others on {', '.join(facts.programs)}: what they translate is not seen")
    ruled = {family for rule in facts.rules.rules for family in rule.families}
    for family in sorted(facts.untracked & _families(facts) - ruled):
        yield (
            f"this kernel does not follow {family.label} without a NAT rule for it: flows that leave under "
            "their own address, which is the peer's, are not seen"
        )


def _is_documentation(address: Address) -> bool:
    """Examples and labs use these, and the standard library calls them private."""
    return str(address).startswith(
        ("192.0.2.", "198.51.100.", "203.0.113.", "2001:db8:", "198.18.", "198.19.")
    )


def _has_netfilter_links(host: Host) -> bool:
    return " bpf_nf_link_attach" in (host.read("proc/kallsyms") or "")


def _foreign_programs() -> tuple[str, ...]:
    """Interfaces with an XDP program or an eBPF filter on what leaves."""
    found = []
    with IPRoute() as routes:
        for link in routes.get_links():
            name, xdp = link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_XDP")
            attached = xdp is not None and xdp.get_attr("IFLA_XDP_ATTACHED")
            filters = [one.get_attr("TCA_KIND") for one in routes.get_filters(link["index"], parent=_EGRESS)]
            if attached or "bpf" in filters:
                found.append(str(name))
    return tuple(sorted(found))
