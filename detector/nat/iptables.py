# SPDX-License-Identifier: Apache-2.0
"""Source-NAT rules from iptables' own words: ``iptables-save``, ``iptables -S``, or the commands themselves.

Legacy and nft variants write alike. Prefix translation of table mangle (SNPT) is read too: it keeps the host
bits one to one, outside of conntrack. What stands around the rules (prompts, headings, other commands) is
left alone; a line between ``*nat`` and ``COMMIT`` that is no rule is named.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from detector.base.errors import UsageError
from detector.base.family import Family
from detector.base.ranges import AddressRange
from detector.nat.ipt_conditions import Option, Unreadable, conditions
from detector.nat.ipt_text import Block, blocks_of
from detector.nat.model import (
    Base,
    Mapping,
    Masquerade,
    Netmap,
    NetmapPair,
    NotUnderstood,
    PortsOnly,
    RangeHash,
    RuleSet,
    SingleAddress,
    Where,
    digest,
)
from detector.nat.walk import (
    Action,
    Branch,
    Entry,
    Hooked,
    Jump,
    Return,
    Stop,
    Translate,
    Unclear,
    walked,
)

HINT = "give it the output of `iptables-save` or `ip6tables-save`"

_FLAGS = {"--random": "random", "--random-fully": "fully-random", "--persistent": "persistent"}
_ROOT = "POSTROUTING"
_LONG = {
    "--source": "-s", "--src": "-s", "--destination": "-d", "--dst": "-d", "--in-interface": "-i",
    "--out-interface": "-o", "--protocol": "-p", "--proto": "-p", "--jump": "-j", "--goto": "-g",
    "--match": "-m", "--fragment": "-f",
}  # fmt: skip
_ONE_VALUE = frozenset(
    {"--comment", "--log-prefix", "--nflog-prefix", "--string", "--hex-string", "--u32", "--bytecode"}
)
_EFFECTLESS = frozenset(
    {
        "ACCOUNT", "AUDIT", "CHAOS", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "ECN",
        "HL", "HMARK", "IDLETIMER", "LED", "LOG", "LOGMARK", "MARK", "NFLOG", "NOTRACK", "RATEEST",
        "SECMARK", "SET", "SYSRQ", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL", "ULOG",
    }
)  # fmt: skip
"""Targets that let the packet go on, and leave its source address alone."""

MAX_LINE = 1 << 16
"""Characters of one rule."""

_MARKERS = frozenset({"MARK", "HMARK", "CONNMARK"})
_PRIORITY = {"nat": 100, "mangle": -150}


@dataclass(frozen=True, slots=True)
class IptablesListing:
    """What iptables lists, before any chain is walked; as `nftables.NftListing`."""

    hooked: tuple[Hooked, ...]
    unread: tuple[NotUnderstood, ...]
    marks: str


def read_iptables_save(text: str, family: Family | None = None) -> RuleSet:
    """The source-NAT rules of ``iptables-save`` or ``ip6tables-save``, or of both, one after the other.

    Args:
        text: what the tool printed, or what was typed to it.
        family: of the rules, where neither the tool's header nor an address tells; IPv4 by default.

    Raises:
        UsageError: the text has no table.
    """
    listing = iptables_listing(text, family)
    return walked(listing.hooked, listing.unread, listing.marks)


def iptables_listing(text: str, family: Family | None = None) -> IptablesListing:
    """The chains of a text; arguments and errors as for `read_iptables_save`."""
    blocks = list(blocks_of(text, family))
    if not blocks:
        raise UsageError("there is no table in the iptables rules", HINT)
    marked = [line for block in blocks for rules in block.chains.values() for line in rules if _marks(line)]
    hooked, unread = list[Hooked](), list[NotUnderstood]()
    for block in blocks:
        if block.table == "nat":
            hooked.append(_hooked(block))
            unread += _stray(block)
        elif block.table == "mangle" and _translates(block):
            hooked.append(_hooked(block))
    return IptablesListing(tuple(hooked), tuple(unread), digest(marked) if marked else "")


def nat_families(text: str, family: Family | None = None) -> frozenset[Family]:
    """The families whose table ``nat`` is in the text (a table that the tool cannot show is not)."""
    return frozenset(_family(block) for block in blocks_of(text, family) if block.table == "nat")


def _family(block: Block) -> Family:
    """What the tool's header says, else what the block's addresses are."""
    if block.family is not None:
        return block.family
    lines = " ".join(line for rules in block.chains.values() for line in rules)
    return (
        Family.IPV6
        if re.search(r"(?:-s|-d|--to|--to-source|--dst-pfx) \[?[0-9a-f]*:[0-9a-f:]*:", lines)
        else Family.IPV4
    )


def _marks(line: str) -> bool:
    return any(target in _MARKERS for target in re.findall(r"(?:-j|--jump)\s+(\S+)", line))


def _translates(block: Block) -> bool:
    return any("SNPT" in line for rules in block.chains.values() for line in rules)


def _word(block: Block) -> str:
    return "ip6" if _family(block) is Family.IPV6 else "ip"


def _hooked(block: Block) -> Hooked:
    word = _word(block)
    chains = {
        chain: [
            _entry(Where("iptables", word, block.table, chain, number=number), line, block)
            for number, line in enumerate(lines, 1)
        ]
        for chain, lines in block.chains.items()
    }
    policy = block.policies.get(_ROOT, "accept").lower()
    base = Base(word, block.table, _ROOT, _PRIORITY[block.table], policy, "iptables")
    return Hooked(base, chains, frozenset({_family(block)}), stateless=block.table != "nat")


def _stray(block: Block) -> Iterator[NotUnderstood]:
    for number, line in enumerate(block.stray, 1):
        where = Where("iptables", _word(block), block.table, "(no chain)", number=number)
        yield NotUnderstood(where, line, "the line is none that iptables-save prints")


def _entry(where: Where, line: str, block: Block) -> Entry:
    families = frozenset({Family.IPV6 if where.family == "ip6" else Family.IPV4})
    text = f"-A {where.chain} {line[:MAX_LINE]}".strip()
    try:
        words = _words(line)
        options = list(_options(words))
        at = next((at for at, one in enumerate(options) if one.name in {"-j", "-g"}), len(options))
        matches = tuple(conditions(options[:at], where.family))
        action = _action(options[at:], block) if at < len(options) else None
    except (Unreadable, ValueError, OverflowError) as why:
        reason = str(why) if isinstance(why, Unreadable) else "its words are not what iptables-save prints"
        return Entry(where, text, families, (), (Branch(Unclear(reason)),))
    lead = tuple(_written(options[:at]))
    comments = [" ".join(one.values) for one in options[:at] if one.name == "--comment"]
    branches = (Branch(action),) if action is not None else ()
    return Entry(where, text, families, matches, branches, lead, " ".join(comments))


def _words(line: str) -> list[str]:
    """The words of a rule, quotes taken off."""
    if len(line) > MAX_LINE:
        raise Unreadable("it is too long for a rule")
    return shlex.split(line) if '"' in line or "'" in line or "\\" in line else line.split()


def _written(options: Iterable[Option]) -> Iterator[str]:
    """The conditions as words for a shell or a file, without counters."""
    return (one.words for one in options if one.name not in {"-c", "--set-counters"})


def _options(words: list[str]) -> Iterator[Option]:
    """Splits a rule's words into options with their values."""
    at, module, negated = 0, "", False
    while at < len(words):
        word = words[at]
        at += 1
        if word == "!":
            negated = True
            continue
        if not word.startswith("-"):
            raise Unreadable(
                f"the word {word[:20]!r} belongs to no option" if word.isalpha() else "a word has no option"
            )
        start = at
        if at < len(words) and words[at] == "!" and at + 1 < len(words) and not _starts_option(words[at + 1]):
            negated, start, at = True, at + 1, at + 1  # `-s ! 10.0.0.0/8`, as it was written before 1.4.3
        most = 1 if word in _ONE_VALUE else len(words)
        while at < len(words) and at - start < most and (word in _ONE_VALUE or not _starts_option(words[at])):
            at += 1
        option = Option(_LONG.get(word, word), tuple(words[start:at]), negated, module)
        negated = False
        module = option.values[0] if option.name == "-m" and option.values else module
        module = _loaded_by_protocol(option, module)
        yield option


def _loaded_by_protocol(option: Option, module: str) -> str:
    """``-p tcp --dport 80`` uses the module of the protocol without naming it."""
    named = option.name == "-p" and len(option.values) == 1 and not module
    return option.values[0] if named and option.values[0] in {"tcp", "udp", "sctp", "icmp"} else module


def _starts_option(word: str) -> bool:
    return word == "!" or (word.startswith("-") and len(word) > 1 and not word[1].isdigit())


def _network(text: str) -> AddressRange:
    return AddressRange.of(ip_network(text, strict=False))


def _range(text: str) -> AddressRange:
    first, _, last = text.partition("-")
    return AddressRange(ip_address(first), ip_address(last or first))


def _action(options: list[Option], block: Block) -> Action | None:
    """What a rule does; None for a target that lets the packet go on."""
    target = options[0].values[0] if options[0].values else ""
    if options[0].name == "-g":
        return Jump(target, comes_back=False)
    if target in block.chains:
        return Jump(target)
    if target in {"SNAT", "MASQUERADE", "NETMAP"} and block.table == "nat":
        return _translate(target, options[1:])
    if target == "SNPT":
        return _prefix_translation({one.name: one.values for one in options[1:]})
    plain: dict[str, Action] = {"ACCEPT": Stop(), "DROP": Stop(dropped=True), "RETURN": Return()}
    plain |= {"QUEUE": Stop(), "NFQUEUE": Stop(), "REJECT": Stop(dropped=True)}
    if target in plain:
        return plain[target]
    if target in _EFFECTLESS or block.table != "nat":
        return None
    raise Unreadable(f"the target {target[:30]} is unknown" if target.isalnum() else "its target is unknown")


def _prefix_translation(options: dict[str, tuple[str, ...]]) -> Translate:
    try:
        (source,), (exits,) = options["--src-pfx"], options["--dst-pfx"]
    except (KeyError, ValueError):
        raise Unreadable("its target SNPT has no --src-pfx and --dst-pfx") from None
    return Translate(Netmap((NetmapPair(_network(source), _network(exits)),)))


def _translate(target: str, options: list[Option]) -> Translate:
    known = {"SNAT": "--to-source", "MASQUERADE": "--to-ports", "NETMAP": "--to"}[target]
    flags = frozenset(_FLAGS[one.name] for one in options if one.name in _FLAGS)
    given = [one for one in options if one.name == known]
    strange = [one.name for one in options if one.name not in _FLAGS and one.name != known]
    if strange or len(given) > 1:
        raise Unreadable(f"the options of its target {target} are not understood")
    if target == "MASQUERADE":
        return Translate(Masquerade(), flags, _ports("".join(given[0].values)) if given else "")
    if not given or len(given[0].values) != 1:
        raise Unreadable(f"its target {target} has no {known}")
    value = given[0].values[0]
    if target == "NETMAP":
        return Translate(Netmap((NetmapPair(None, _network(value)),)), flags)
    mapping, ports = _source_nat(value, "persistent" in flags)
    return Translate(mapping, flags, ports)


def _source_nat(value: str, persistent: bool) -> tuple[Mapping, str]:
    """``A``, ``A-B``, each with ``:ports`` (then IPv6 stands in brackets); ports alone keep the address."""
    if value.startswith(":") and not value.startswith("::"):
        return PortsOnly(), _ports(value[1:])
    addresses, ports = value, ""
    if value.startswith("["):
        addresses, _, ports = value.rpartition("]")
        addresses = addresses.replace("[", "").replace("]", "")
        ports = ports.removeprefix(":")
    elif value.count(":") == 1:
        addresses, _, ports = value.partition(":")
    pool = _range(addresses)
    mapping = SingleAddress(pool.first) if pool.single else RangeHash(pool, persistent)
    return mapping, _ports(ports)


def _ports(text: str) -> str:
    """Source ports as ``1024`` or ``1024-2047``; `--to-source A:1024-2047/3` shifts them by a base."""
    if text and not re.fullmatch(r"\d{1,5}(-\d{1,5})?(/\d{1,5})?", text):
        raise Unreadable("the ports of its target are not understood")
    return text.partition("/")[0]
