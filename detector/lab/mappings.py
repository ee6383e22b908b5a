# SPDX-License-Identifier: Apache-2.0
"""Named source-NAT mappings as nftables text for any pool, with the verdict that each deserves.

The verdicts are those of docs/leak-modes.md §3 and §4. A mapping is written for one family and one pool; a
ruleset is one table per family. Those in `ROUTED` are not about the choice, but about peers that are never
translated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, summarize_address_range

from detector.base.errors import UsageError
from detector.base.family import Family
from detector.base.ranges import AddressRange, Network
from detector.lab.layout import TUNNELS, Routed

# An arbitrary number; the point is that it is written in the rules.
SEED = 0x5EED1234
_LARGEST_MAP = 4096

Statement = Callable[[AddressRange], str]


@dataclass(frozen=True, slots=True)
class Mapping:
    """A way to choose an exit address.

    Attributes:
        name: what it is called on the command line.
        summary: one sentence that says what it is.
        verdict: what the relay is to be called.
        predictor: what explains a `predictable` one, else None.
        statement: the nftables match and statement for a pool, without the output interface.
        routed: which peers it is about, where they are to have an address of their own.
    """

    name: str
    summary: str
    verdict: str
    predictor: str | None
    statement: Statement
    routed: Routed | None = None

    def ruleset(self, pools: Iterable[AddressRange], interface: str) -> str:
        """The nftables text for these pools, at most one of each family, on what leaves by `interface`."""
        return "".join(_table(pool, f'oifname "{interface}" {self.statement(pool)}') for pool in pools)


def _table(pool: AddressRange, rule: str) -> str:
    return (
        f"table {_keyword(pool)} exits {{\n"
        "  chain postrouting {\n"
        "    type nat hook postrouting priority srcnat; policy accept;\n"
        f"    {rule}\n"
        "  }\n"
        "}\n"
    )


def widest_network(pool: AddressRange) -> Network:
    """The largest network that lies inside a pool; the first of equals."""
    if isinstance(pool.first, IPv4Address) and isinstance(pool.last, IPv4Address):
        return min(summarize_address_range(pool.first, pool.last), key=_length)
    if isinstance(pool.first, IPv6Address) and isinstance(pool.last, IPv6Address):
        return min(summarize_address_range(pool.first, pool.last), key=_length)
    raise TypeError("a pool is of one family")


def _length(network: Network) -> int:
    return network.prefixlen


def _keyword(pool: AddressRange) -> str:
    return "ip" if pool.family is Family.IPV4 else "ip6"


def _range(flags: str = "") -> Statement:
    return lambda pool: f"snat to {pool} {flags}".rstrip()


def _draw(expression: str, suffix: str = "", match: str = "") -> Statement:
    """A statement that looks the exit up by a number: `expression` says where the number comes from."""

    def statement(pool: AddressRange) -> str:
        if pool.size > _LARGEST_MAP:
            raise UsageError(f"the pool {pool} is too large to be written as a map", "take a smaller one")
        number = f"{expression.format(ip=_keyword(pool))} mod {pool.size} {suffix}".rstrip()
        exits = ", ".join(f"{position} : {pool.at(position)}" for position in range(pool.size))
        return f"{match} snat to {number} map {{ {exits} }}".lstrip()

    return statement


_PORTS = "meta l4proto { tcp, udp }"
# Translates nobody, and has the kernel track the family, as a relay's firewall does.
_TRACKED = "ct state new accept"

_ALL = (
    Mapping(
        "persistent",
        "The kernel's hash of the tunnel address alone: one exit for everything a peer does.",
        "predictable",
        "kernel_persistent",
        _range("persistent"),
    ),
    Mapping(
        "plain",
        "The kernel's hash of tunnel address and destination: one exit per peer and site.",
        "predictable",
        "kernel_destination",
        _range(),
    ),
    Mapping(
        "random",
        "As plain, with random ports: the address is still the hash.",
        "predictable",
        "kernel_destination",
        _range("random"),
    ),
    Mapping(
        "fully-random",
        "As plain, with ports drawn anew for every flow: the address is still the hash.",
        "predictable",
        "kernel_destination",
        _range("fully-random"),
    ),
    Mapping(
        "jhash",
        "A hash of the tunnel address with a seed drawn when the rules are loaded.",
        "pinned",
        None,
        _draw("jhash {ip} saddr"),
    ),
    Mapping(
        "jhash-seeded",
        "A hash of the tunnel address with a seed that is written in the rules.",
        "predictable",
        "seeded_jhash",
        _draw("jhash {ip} saddr", f"seed {SEED:#x}"),
    ),
    Mapping(
        "jhash-src-dst",
        "A hash of tunnel address and destination with a seed drawn when the rules are loaded.",
        "destination_linked",
        None,
        _draw("jhash {ip} saddr . {ip} daddr"),
    ),
    Mapping(
        "jhash-src-sport",
        "A hash of tunnel address and source port with a seed drawn when the rules are loaded.",
        "unlinkable",
        None,
        _draw("jhash {ip} saddr . th sport", match=_PORTS),
    ),
    Mapping("symhash", "A hash of the whole flow.", "unlinkable", None, _draw("symhash")),
    Mapping("numgen-random", "A random number for every flow.", "unlinkable", None, _draw("numgen random")),
    Mapping("numgen-inc", "The next exit in turn for every flow.", "unlinkable", None, _draw("numgen inc")),
    Mapping(
        "masquerade",
        "The relay's own address for everybody.",
        "single_exit",
        None,
        lambda _pool: "masquerade",
    ),
    Mapping(
        "netmap",
        "The host bits of the tunnel address, put into the largest network of the pool.",
        "predictable",
        "netmap",
        lambda pool: f"snat prefix to {widest_network(pool)}",
    ),
)

_ROUTED = (
    Mapping(
        "routed6",
        "IPv4 at random; in IPv6 a global address for each peer, routed and not translated.",
        "exclusive",
        None,
        lambda pool: _draw("numgen random")(pool) if pool.family is Family.IPV4 else _TRACKED,
        Routed(Family.IPV6, 1),
    ),
    Mapping(
        "routed4",
        "At random, but for a few peers with a public IPv4 of their own, routed and not translated.",
        "exclusive",
        None,
        lambda pool: _draw("numgen random", match=f"{_keyword(pool)} saddr {TUNNELS[pool.family]}")(pool),
        Routed(Family.IPV4, 8),
    ),
)

MAPPINGS = {mapping.name: mapping for mapping in _ALL}
"""Those for any lab, by name."""

ROUTED = {mapping.name: mapping for mapping in _ROUTED}
"""Those for a lab whose peers have been given what `Mapping.routed` says, by name."""


def find(name: str) -> Mapping:
    """The mapping of this name.

    Raises:
        UsageError: there is none.
    """
    try:
        return (MAPPINGS | ROUTED)[name]
    except KeyError:
        names = ", ".join(MAPPINGS | ROUTED)
        raise UsageError(f"no mapping is called {name!r}", f"there are: {names}") from None


def shared_secret() -> Mapping:
    """A secret that several relays are given: sticky, and nothing on one relay tells that others have it.

    The hash is over the mark, too, which is no field of a packet: so no predictor can follow it.
    """
    return Mapping(
        "shared-secret",
        "A hash of the tunnel address and the mark with a seed that other relays have, too.",
        "pinned",
        None,
        _draw("jhash {ip} saddr . meta mark", f"seed {SEED:#x}"),
    )
