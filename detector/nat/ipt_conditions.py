# SPDX-License-Identifier: Apache-2.0
"""What the conditions of an iptables rule ask of a packet: from its options to `Match`es."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from detector.base.ranges import AddressRange
from detector.nat.model import About, Match, Numgen, NumgenMode

STATISTIC_RANGE = 1 << 31
"""xt_statistic compares 31 random bits with the probability times 2^31 (`statistic_mt`)."""

BY_MARK = "a mark that other rules set decides which packets it takes"

_PLACE_MODULES = frozenset(
    {
        "addrtype", "ah", "connbytes", "connlimit", "conntrack", "dccp", "dscp", "dst", "ecn", "esp", "frag",
        "hashlimit", "hbh", "helper", "hl", "icmp", "icmp6", "ipcomp", "ipv6header", "ipvs", "length",
        "limit", "mh", "multiport", "nfacct", "pkttype", "quota", "rateest", "realm", "rpfilter", "rt",
        "sctp", "state", "tcp", "tcpmss", "time", "tos", "ttl", "udp", "udplite",
    }
)  # fmt: skip
"""Modules that look at the site, the protocol or the clock, or that cannot name a peer."""

_NAMED_MODULES = {
    "mac": "the sender's hardware address decides",
    "owner": "the sender's user decides",
    "cgroup": "the sender's control group decides",
    "eui64": "the sender's hardware address decides",
    "osf": "the sender's system decides",
    "socket": "the sender's socket decides",
}
_BY_PORT = {
    "--dport": "dport",
    "--dports": "dport",
    "--destination-port": "dport",
    "--destination-ports": "dport",
}
_BY_PORT |= {"--sport": "sport", "--sports": "sport", "--source-port": "sport", "--source-ports": "sport"}
_PLAIN = {"-i": "iifname", "-o": "oifname", "-p": "meta l4proto"}


class Unreadable(Exception):
    """This part of a rule is not understood; the text says why, without an address."""


@dataclass(frozen=True, slots=True)
class Option:
    """``[!] --name values``, and the module that ``-m`` named before it."""

    name: str
    values: tuple[str, ...]
    negated: bool
    module: str

    @property
    def words(self) -> str:
        """As it is written."""
        return " ".join([*(["!"] if self.negated else []), self.name, *map(quoted, self.values)])


def quoted(word: str) -> str:
    """A word as iptables-save prints it, without control characters."""
    plain = "".join(char if char.isprintable() else " " for char in word)
    if plain and not re.search(r"[\s\"'\\]", plain):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def conditions(options: Iterable[Option], family: str) -> Iterator[Match]:
    """The conditions before the target.

    Args:
        options: in order.
        family: ``ip`` or ``ip6``.

    Raises:
        Unreadable: one is not understood.
        ValueError: an address or number is none.
    """
    modules: dict[str, list[Option]] = {}
    for one in options:
        if one.name in {"-s", "-d"}:
            yield _address(one, f"{family} {'saddr' if one.name == '-s' else 'daddr'}")
        elif one.name in _PLAIN:
            about = About.INTERFACE if one.name == "-i" else About.PLACE
            if one.values not in {("all",), ("0",)} or one.name != "-p":
                yield Match(_PLAIN[one.name], one.values, one.negated, about=about, text=one.words)
        elif one.name == "-m":
            modules.setdefault(" ".join(one.values), [])
        elif one.name == "-f":
            yield Match("fragment", ("later",), one.negated, text=one.words)
        elif one.name not in {"-c", "-4", "-6", "--set-counters", "--ipv4", "--ipv6"}:
            modules.setdefault(one.module, []).append(one)
    for module, its in modules.items():
        yield from _module(module, its, family)


def _address(option: Option, subject: str) -> Match:
    """``-s`` and ``-d``: addresses, networks, or bits of an address under a mask that is no prefix."""
    values = option.values[0].split(",") if option.values else []
    if not values:
        raise ValueError("no address")
    masks = [_mask_of(value) for value in values]
    about = About.SENDER if subject.endswith("saddr") else About.PLACE
    if any(mask is not None for mask in masks):
        if len(values) > 1:
            raise Unreadable("several masks that are no prefixes stand in one condition")
        value = ip_address(values[0].partition("/")[0])
        kind, mask = About.BITS if about is About.SENDER else About.PLACE, masks[0] or 0
        shown = f"{subject} & {mask:#x}"
        wanted = str(type(value)(int(value) & mask))
        return Match(shown, (wanted,), option.negated, about=kind, text=option.words)
    ranges = tuple(AddressRange.of(ip_network(value, strict=False)) for value in values)
    shown_values = tuple(short(one) for one in ranges)
    sources = ranges if about is About.SENDER else ()
    if sources and any(one.size == 1 << one.first.max_prefixlen for one in ranges):
        sources, about = (), About.PLACE  # 0.0.0.0/0 asks nothing
        if not option.negated:
            return Match(subject, shown_values, text=option.words, about=about)
    return Match(subject, shown_values, option.negated, sources=sources, about=about, text=option.words)


def _mask_of(value: str) -> int | None:
    """The mask of ``A/MASK`` where it is no prefix, else None."""
    _, _, mask = value.partition("/")
    if not mask or mask.isdigit():
        return None
    bits = ip_address(mask)
    number, width = int(bits), bits.max_prefixlen
    free = ~number & ((1 << width) - 1)
    return None if free & (free + 1) == 0 else number


def short(span: AddressRange) -> str:
    """A range as a prefix where it is one."""
    network = None if span.single else span.network()
    return str(network or span)


def _module(module: str, options: list[Option], family: str) -> Iterator[Match]:
    """The conditions of one module."""
    if module == "comment":
        return
    if module == "statistic":
        yield _statistic({one.name: one for one in options}, _said(module, options))
        return
    loose: list[Option] = []
    for one in options:
        made = _known(module, one, family)
        if made is None:
            loose.append(one)
        else:
            yield made
    if loose:  # `-m tcp` without options says nothing that `-p tcp` does not
        about, reason = _about(module, loose)
        text = _said(module, loose)
        subject = module if module in {"limit", "quota", "recent", "hashlimit", "connlimit", "time"} else text
        values = (text,) if subject != text else ()
        yield Match(subject, values, about=about, reason=reason, text=text)


def _said(module: str, options: Sequence[Option]) -> str:
    return " ".join(["-m", module or "?", *(one.words for one in options)])


def _known(module: str, option: Option, family: str) -> Match | None:
    """The condition that one option is by itself, where it is of a kind that is compared; else None."""
    text = f"-m {module} {option.words}"
    name, joined = option.name, "".join(option.values)
    if name in _BY_PORT:
        return Match(_BY_PORT[name], tuple(joined.split(",")), option.negated, text=text)
    if name in {"--src-range", "--dst-range"}:
        span = _range(joined)
        if name == "--dst-range":
            return Match(f"{family} daddr", (str(span),), option.negated, text=text)
        subject = f"{family} saddr"
        return Match(subject, (str(span),), option.negated, sources=(span,), about=About.SENDER, text=text)
    if name == "--ctorigsrc":
        span = AddressRange.of(ip_network(joined, strict=False))
        subject = f"ct original {family} saddr"
        return Match(subject, (short(span),), option.negated, sources=(span,), about=About.SENDER, text=text)
    if name in {"--ctstate", "--state"}:
        return Match("ct state", tuple(joined.lower().split(",")), option.negated, text=text)
    if name == "--match-set" and len(option.values) == 2:
        return _match_set(option, text)
    if name in {"--dst-type", "--src-type"}:
        return Match(f"{module} {name}", tuple(joined.split(",")), option.negated, text=text)
    return None


def _match_set(option: Option, text: str) -> Match:
    """``-m set --match-set NAME src,dst``: an ipset, whose elements iptables-save does not print."""
    name, flags = option.values
    if "src" not in flags.split(","):
        return Match(f"-m set {flags}", (f"@{name}",), option.negated, text=text)
    reason = f"the ipset {name[:32]} decides, and what it holds is not in the rules"
    about = About.NAMED
    return Match(f"-m set {flags}", (f"@{name}",), option.negated, about=about, reason=reason, text=text)


def _about(module: str, options: Sequence[Option]) -> tuple[About, str]:
    """What a module's options can tell of the sender, and what decides."""
    names = {one.name for one in options}
    if module in {"mark", "connmark"}:
        return About.HIDDEN, BY_MARK
    if module in _NAMED_MODULES:
        return About.NAMED, _NAMED_MODULES[module]
    if module == "physdev":
        return (About.INTERFACE if "--physdev-in" in names else About.PLACE), ""
    if module == "devgroup":
        return (About.INTERFACE if "--src-group" in names else About.PLACE), ""
    if module == "recent":
        return (About.PLACE if "--rdest" in names else About.NAMED), "a list of recent senders decides"
    if module == "geoip":
        sender = names & {"--src-cc", "--source-country"}
        return (About.NAMED if sender else About.PLACE), "the sender's country decides"
    if module == "policy":
        peers = names & {"--reqid", "--spi", "--tunnel-src", "--tunnel-dst"}
        return (About.NAMED if peers else About.PLACE), "an IPsec policy that may be one peer's decides"
    if module == "cluster":
        return About.HIDDEN, "-m cluster decides which sources it takes"
    if module in _PLACE_MODULES:
        return About.PLACE, ""
    return About.HIDDEN, f"-m {module[:20]} decides which packets it takes"


def _statistic(options: dict[str, Option], text: str) -> Match:
    """``-m statistic`` as the number generator that it is."""
    mode = options["--mode"].values if "--mode" in options else ()
    if mode == ("random",) and "--probability" in options:
        draw = options["--probability"]
        taken = round(float("".join(draw.values)) * STATISTIC_RANGE)
        chooser = Numgen(NumgenMode.RANDOM, STATISTIC_RANGE)
        return Match("statistic random", (f"0-{max(taken - 1, 0)}",), draw.negated, chooser, text=text)
    if mode == ("nth",) and "--every" in options:
        draw = options["--every"]
        every = int("".join(draw.values))
        packet = "".join(options["--packet"].values) if "--packet" in options else "0"
        if every < 1:
            raise Unreadable("its statistic has no shape that iptables prints")
        chooser = Numgen(NumgenMode.INC, every)
        return Match("statistic nth", (str(int(packet)),), draw.negated, chooser, text=text)
    raise Unreadable("its statistic has no shape that iptables prints")


def _range(text: str) -> AddressRange:
    first, _, last = text.partition("-")
    return AddressRange(ip_address(first), ip_address(last or first))
