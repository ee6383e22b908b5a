# SPDX-License-Identifier: Apache-2.0
"""Source-NAT rules from the text of ``iptables-save`` and ``ip6tables-save`` (legacy and nft variants alike).

A condition by ``-m cluster``, ``-m u32``, ``-m bpf`` or a mark that other rules set may stand for single
peers: a rule under one of them is kept, and reported as not understood too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from detector.base.errors import UsageError
from detector.base.family import Family
from detector.base.ranges import AddressRange
from detector.nat.model import (
    Mapping,
    Masquerade,
    Match,
    Netmap,
    NetmapPair,
    Numgen,
    NumgenMode,
    PortsOnly,
    RangeHash,
    RuleSet,
    SingleAddress,
    Where,
)
from detector.nat.walk import BY_MARK, Action, Branch, Entry, Jump, Return, Stop, Translate, Unclear, Walk

HINT = "give it the output of `iptables-save` or `ip6tables-save`"
STATISTIC_RANGE = 1 << 31
"""xt_statistic compares 31 random bits with the probability times 2^31 (`statistic_mt`)."""

_FLAGS = {"--random": "random", "--random-fully": "fully-random", "--persistent": "persistent"}
_NAT_ROOT = "POSTROUTING"
_LONG = {
    "--source": "-s", "--src": "-s", "--destination": "-d", "--dst": "-d", "--in-interface": "-i",
    "--out-interface": "-o", "--protocol": "-p", "--proto": "-p", "--jump": "-j", "--goto": "-g",
    "--match": "-m",
}  # fmt: skip
_ONE_VALUE = frozenset(
    {"--comment", "--log-prefix", "--nflog-prefix", "--string", "--hex-string", "--u32", "--bytecode"}
)
_EFFECTLESS = frozenset(
    {
        "LOG",
        "NFLOG",
        "ULOG",
        "MARK",
        "CONNMARK",
        "HMARK",
        "CLASSIFY",
        "TEE",
        "TRACE",
        "DSCP",
        "TOS",
        "AUDIT",
        "SET",
    }
)
_MARKERS = frozenset({"MARK", "HMARK", "CONNMARK"})
_UNCLEAR = {
    "cluster": "-m cluster decides which sources it takes",
    "u32": "-m u32 decides which packets it takes",
    "bpf": "-m bpf decides which packets it takes",
}


class Unreadable(Exception):
    """This part of a rule is not understood; the text says why, without an address."""


@dataclass(slots=True)
class _Block:
    """One ``*table ... COMMIT``, its rules by chain as words."""

    table: str
    family: Family | None
    chains: dict[str, list[str]] = field(default_factory=dict)
    stray: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Option:
    """``[!] --name values``, and the module that ``-m`` named before it."""

    name: str
    values: tuple[str, ...]
    negated: bool
    module: str


def read_iptables_save(text: str, family: Family | None = None) -> RuleSet:
    """The source-NAT rules of ``iptables-save`` or ``ip6tables-save``, or of both, one after the other.

    Args:
        text: what the tool printed.
        family: of the rules, where neither the tool's header nor an address tells; IPv4 by default.

    Raises:
        UsageError: the text has no table.
    """
    blocks = list(_blocks(text, family))
    if not blocks:
        raise UsageError("there is no table in the iptables rules", HINT)
    marked = any(_marks(line) for block in blocks for rules in block.chains.values() for line in rules)
    walk = Walk()
    for block in blocks:
        if block.table == "nat":
            _walk_block(walk, block, marked)
    return walk.result()


def nat_families(text: str, family: Family | None = None) -> frozenset[Family]:
    """The families whose table ``nat`` is in the text (a table that the tool cannot show is not)."""
    return frozenset(_family(block) for block in _blocks(text, family) if block.table == "nat")


def _blocks(text: str, family: Family | None) -> Iterator[_Block]:
    told, block = family, None
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("#"):
            tool = re.search(r"\b(ip6?)tables(-legacy|-nft)?-save\b", line)
            told = {"ip": Family.IPV4, "ip6": Family.IPV6}[tool.group(1)] if tool else told
        elif line.startswith("*"):
            block = _Block(line[1:].strip(), told)
            yield block
        elif block is not None and line and line != "COMMIT":
            _take(block, line)


def _take(block: _Block, line: str) -> None:
    """One line of a table: a chain, a rule, or something stray."""
    rule = re.match(r"(?:\[\d+:\d+\]\s+)?-(?:A|-append)\s+(\S+)\s*(.*)", line)
    if rule:
        block.chains.setdefault(rule.group(1), []).append(rule.group(2))
    elif line.startswith(":") and len(line) > 1:
        block.chains.setdefault(line[1:].split(maxsplit=1)[0], [])
    else:
        block.stray.append(line)


def _family(block: _Block) -> Family:
    """What the tool's header says, else what the block's addresses are."""
    if block.family is not None:
        return block.family
    lines = " ".join(line for rules in block.chains.values() for line in rules)
    return (
        Family.IPV6
        if re.search(r"(?:-s|-d|--to|--to-source) \[?[0-9a-f]*:[0-9a-f:]*:", lines)
        else Family.IPV4
    )


def _marks(line: str) -> bool:
    return any(target in _MARKERS for target in re.findall(r"(?:-j|--jump)\s+(\S+)", line))


def _walk_block(walk: Walk, block: _Block, marked: bool) -> None:
    family = _family(block)
    word = "ip6" if family is Family.IPV6 else "ip"
    chains = {
        chain: [
            _entry(Where("iptables", word, block.table, chain, number=number), line, block, marked)
            for number, line in enumerate(lines, 1)
        ]
        for chain, lines in block.chains.items()
    }
    families = frozenset({family})
    for number, line in enumerate(block.stray, 1):
        where = Where("iptables", word, block.table, "(no chain)", number=number)
        unclear = (Branch(Unclear("the line is none that iptables-save prints")),)
        walk.base({"": [Entry(where, line, families, (), unclear)]}, "", families)
    walk.base(chains, _NAT_ROOT, families)


def _entry(where: Where, line: str, block: _Block, marked: bool) -> Entry:
    families = frozenset({Family.IPV6 if where.family == "ip6" else Family.IPV4})
    text = f"-A {where.chain} {line}".strip()
    try:
        options = list(_options(shlex.split(line)))
        at = next((at for at, one in enumerate(options) if one.name in {"-j", "-g"}), len(options))
        matches = tuple(_matches(options[:at], where.family, marked))
        action = _action(options[at:], block) if at < len(options) else None
    except (Unreadable, ValueError, OverflowError) as why:
        reason = str(why) if isinstance(why, Unreadable) else "its words are not what iptables-save prints"
        return Entry(where, text, families, (), (Branch(Unclear(reason)),))
    return Entry(where, text, families, matches, (Branch(action),) if action is not None else ())


def _options(words: list[str]) -> Iterator[_Option]:
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
        most = 1 if word in _ONE_VALUE else len(words)
        while at < len(words) and at - start < most and (word in _ONE_VALUE or not _starts_option(words[at])):
            at += 1
        option = _Option(_LONG.get(word, word), tuple(words[start:at]), negated, module)
        negated = False
        module = option.values[0] if option.name == "-m" and option.values else module
        yield option


def _starts_option(word: str) -> bool:
    return word == "!" or (word.startswith("-") and len(word) > 1 and not word[1].isdigit())


def _matches(options: Iterable[_Option], family: str, marked: bool) -> Iterator[Match]:
    """The conditions before the target; the options of one module are one condition."""
    modules: dict[str, list[_Option]] = {}
    for one in options:
        plain = {"-s": "saddr", "-d": "daddr", "-i": "iifname", "-o": "oifname", "-p": "meta l4proto"}.get(
            one.name
        )
        if plain in {"saddr", "daddr"}:
            values = one.values[0].split(",") if one.values else []
            sources = tuple(_network(value) for value in values) if plain == "saddr" else ()
            yield Match(f"{family} {plain}", tuple(values), one.negated, sources=sources)
        elif plain:
            yield Match(plain, one.values, one.negated)
        elif one.name == "-m":
            modules.setdefault(" ".join(one.values), [])
        elif one.name not in {"-c", "-4", "-6", "--set-counters"}:
            modules.setdefault(one.module, []).append(one)
    for module, its in modules.items():
        yield from _module(module, its, marked)


def _module(module: str, options: list[_Option], marked: bool) -> Iterator[Match]:
    if module == "comment":
        return
    if module == "statistic":
        yield _statistic({one.name: one for one in options})
    elif options:  # `-m tcp` without options says nothing that `-p tcp` does not
        words = [("! " if one.negated else "") + " ".join((one.name, *one.values)) for one in options]
        unclear = BY_MARK if marked and module in {"mark", "connmark"} else _UNCLEAR.get(module, "")
        ranges = [one for one in options if one.name == "--src-range" and not one.negated]
        sources = tuple(_range(one.values) for one in ranges)
        yield Match(" ".join(["-m", module, *words]), sources=sources, unclear=unclear)


def _statistic(options: dict[str, _Option]) -> Match:
    """``-m statistic`` as the number generator that it is."""
    mode = options["--mode"].values if "--mode" in options else ()
    if mode == ("random",) and "--probability" in options:
        draw = options["--probability"]
        taken = round(float("".join(draw.values)) * STATISTIC_RANGE)
        chooser = Numgen(NumgenMode.RANDOM, STATISTIC_RANGE)
        return Match("statistic random", (f"0-{max(taken - 1, 0)}",), draw.negated, chooser)
    if mode == ("nth",) and "--every" in options:
        draw = options["--every"]
        every = int("".join(draw.values))
        packet = "".join(options["--packet"].values) if "--packet" in options else "0"
        if every < 1:
            raise Unreadable("its statistic has no shape that iptables prints")
        return Match("statistic nth", (str(int(packet)),), draw.negated, Numgen(NumgenMode.INC, every))
    raise Unreadable("its statistic has no shape that iptables prints")


def _network(text: str) -> AddressRange:
    return AddressRange.of(ip_network(text, strict=False))


def _range(values: tuple[str, ...]) -> AddressRange:
    first, _, last = "".join(values).partition("-")
    return AddressRange(ip_address(first), ip_address(last or first))


def _action(options: list[_Option], block: _Block) -> Action | None:
    """What a rule does; None for a target that lets the packet go on."""
    target = options[0].values[0] if options[0].values else ""
    if options[0].name == "-g":
        return Jump(target, comes_back=False)
    if target in block.chains:
        return Jump(target)
    if target in {"SNAT", "MASQUERADE", "NETMAP"}:
        return _translate(target, options[1:])
    plain: dict[str, Action] = {"ACCEPT": Stop(), "DROP": Stop(dropped=True), "RETURN": Return()}
    plain |= {"QUEUE": Stop(), "NFQUEUE": Stop(), "REJECT": Stop(dropped=True)}
    if target in plain:
        return plain[target]
    if target in _EFFECTLESS:
        return None
    raise Unreadable(f"the target {target[:30]} is unknown" if target.isalnum() else "its target is unknown")


def _translate(target: str, options: list[_Option]) -> Translate:
    known = {"SNAT": "--to-source", "MASQUERADE": "--to-ports", "NETMAP": "--to"}[target]
    flags = frozenset(_FLAGS[one.name] for one in options if one.name in _FLAGS)
    given = [one for one in options if one.name == known]
    strange = [one.name for one in options if one.name not in _FLAGS and one.name != known]
    if strange or len(given) > 1:
        raise Unreadable(f"the options of its target {target} are not understood")
    if target == "MASQUERADE":
        return Translate(Masquerade(), flags)
    if not given or len(given[0].values) != 1:
        raise Unreadable(f"its target {target} has no {known}")
    value = given[0].values[0]
    if target == "NETMAP":
        return Translate(Netmap((NetmapPair(None, _network(value)),)), flags)
    return Translate(_source_nat(value, "persistent" in flags), flags)


def _source_nat(value: str, persistent: bool) -> Mapping:
    """``A``, ``A-B``, each with ``:ports`` (then IPv6 stands in brackets); ports alone keep the address."""
    if value.startswith(":") and not value.startswith("::"):
        return PortsOnly()
    addresses = value
    if value.startswith("["):
        addresses = re.sub(r"\]:[\d-]+$", "]", value).replace("[", "").replace("]", "")
    elif value.count(":") == 1:
        addresses = value.partition(":")[0]
    pool = _range((addresses,))
    return SingleAddress(pool.first) if pool.single else RangeHash(pool, persistent)
