# SPDX-License-Identifier: Apache-2.0
"""Finds iptables' rules in what people have: saves, ``-S``, ``-L -v -n``, scripts, wg-quick files, terminals.

Every form ends in a `Block`: one table with its chains, each rule as the words that follow ``-A CHAIN``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from detector.base.errors import UsageError
from detector.base.family import Family

_TOOL = re.compile(
    r"(?:^|[\s/;&|=(`])(ip6?)tables(?:-legacy|-nft)?\s+(?=.*(?:-[ADIRNPFX]\b|--(?:append|insert|policy)))"
)
_HEADER = re.compile(r"\b(ip6?)tables(-legacy|-nft)?(-save)?\b")
_CHAIN_HEAD = re.compile(r"Chain (\S+) \((?:policy (\S+)|\d+ references)")
_COLUMNS = re.compile(
    r"(?:num\s+)?(pkts\s+bytes\s+)?target\s+prot\s+opt\s+(in\s+out\s+)?source\s+destination"
)
_RULE = re.compile(r"(?:\[\d+:\d+\]\s+)?(-A|--append|-I|--insert|-N|--new-chain|-P|--policy)\s+(\S+)\s*(.*)")
_NAT_TARGET = re.compile(r"(?:-j|--jump)\s+(?:SNAT|MASQUERADE|NETMAP|SAME|DNAT|REDIRECT)\b")
_WORDS = {"ip": Family.IPV4, "ip6": Family.IPV6}


@dataclass(slots=True)
class Block:
    """One table: its rules by chain as words, and lines that are none."""

    table: str
    family: Family | None
    chains: dict[str, list[str]] = field(default_factory=dict)
    policies: dict[str, str] = field(default_factory=dict)
    stray: list[str] = field(default_factory=list)

    def add(self, chain: str, words: str, at: int | None = None) -> None:
        """A rule at the end of a chain, or before the one that is `at` (from 0) now."""
        rules = self.chains.setdefault(chain, [])
        rules.insert(len(rules) if at is None else at, words)


def looks_like_iptables(text: str) -> bool:
    """Whether a text is iptables' in any of its forms, and not nft's."""
    return bool(
        re.search(r"^\s*\*\w+\s*$", text, re.MULTILINE)
        or re.search(r"^\s*(?:\[\d+:\d+\]\s+)?-(?:A|P|N|I) [\w-]+", text, re.MULTILINE)
        or _CHAIN_HEAD.search(text)
        or any(_TOOL.search(line) for line in text.splitlines() if len(line) < 65_536)
    )


def blocks_of(text: str, family: Family | None = None) -> Iterator[Block]:
    """The tables of a text, those that were written line by line last.

    Args:
        text: any of the forms.
        family: of the rules, where the text does not tell.

    Raises:
        UsageError: it is a listing that leaves interfaces out.
    """
    reader = _Reader(family)
    for raw in text.splitlines():
        reader.line(raw.strip())
    yield from reader.blocks()


class _Reader:
    """Goes through a text line by line."""

    def __init__(self, family: Family | None) -> None:
        self._family = family
        self._given = family
        self._block: Block | None = None
        self._saved: list[Block] = []
        self._typed: dict[tuple[str, Family | None], Block] = {}
        self._bare = Block("", family)
        self._listed: _Listed | None = None

    def line(self, line: str) -> None:
        """Takes the next line, without space around it."""
        if not line:
            return
        if line.startswith("*") and re.fullmatch(r"\*\w+", line):
            self._block = Block(line[1:], self._family)
            self._saved.append(self._block)
        elif self._block is not None:
            self._in_block(self._block, line)
        elif line.startswith("#") or _is_prompt(line):
            self._heading(line)
        else:
            self._loose(line)

    def _loose(self, line: str) -> None:
        """A line outside of any table."""
        if head := _CHAIN_HEAD.match(line):
            self._listed = self._listed or _Listed(Block("", self._family))
            self._listed.chain(head[1], head[2])
        elif _RULE.match(line):
            _take(self._bare, line)
        elif _TOOL.search(line):
            self._commands(line)
        elif self._listed is not None and _COLUMNS.match(line):
            self._listed.columns(line)
        elif self._listed is not None:
            self._listed.rule(line)

    def _in_block(self, block: Block, line: str) -> None:
        if line == "COMMIT":
            self._block = None
        elif line.startswith("#"):
            self._heading(line)
        elif rule := _RULE.match(line):
            _take(block, line) if rule else None
        elif line.startswith(":") and len(line) > 1:
            name, *rest = line[1:].split()
            block.chains.setdefault(name, [])
            if rest and rest[0] != "-":
                block.policies[name] = rest[0]
        elif not _is_prompt(line):
            block.stray.append(line)

    def _heading(self, line: str) -> None:
        """A comment or a prompt that may name the tool."""
        tool = _HEADER.search(line)
        if tool:
            self._family = _WORDS[tool[1]]
            if _is_prompt(line):
                self._bare.family = self._family
        if tool and not line.startswith("#") and _TOOL.search(line):
            self._commands(line)

    def _commands(self, line: str) -> None:
        """Commands of a shell: ``PostUp = iptables -t nat -A ...; ip6tables ...``."""
        if re.match(r"(?i)(post|pre)down\s*=", line):
            return
        for piece in _pieces(line):
            tool = _TOOL.search(f" {piece}")
            if tool:
                self._command(_WORDS[tool[1]], piece)

    def _command(self, family: Family, piece: str) -> None:
        words = piece.split()
        start = next(at for at, word in enumerate(words) if _HEADER.search(word))
        words, table, rest = words[start + 1 :], "filter", list[str]()
        at = 0
        while at < len(words):
            word = words[at]
            if word in {"-t", "--table"} and at + 1 < len(words):
                table, at = words[at + 1], at + 2
            elif word in {"-w", "--wait", "-W", "--wait-interval"}:
                at += 2 if at + 1 < len(words) and words[at + 1].isdigit() else 1
            else:
                rest.append(word)
                at += 1
        block = self._typed.setdefault((table, family), Block(table, family))
        action = next(
            (at for at, word in enumerate(rest) if re.fullmatch(r"-[AINPFX]|--(append|insert|policy)", word)),
            None,
        )
        if action is not None:
            _take(block, " ".join(rest[action:] if action == 0 else [*rest[action:], *rest[:action]]))

    def blocks(self) -> Iterator[Block]:
        """Everything found."""
        yield from self._saved
        if self._bare.chains:
            lines = " ".join(f"-A {line}" for rules in self._bare.chains.values() for line in rules)
            self._bare.table = "nat" if _NAT_TARGET.search(lines) else "filter"
            yield self._bare
        if self._listed is not None:
            yield self._listed.block()
        yield from self._typed.values()


def _take(block: Block, line: str) -> None:
    """``-A CHAIN ...`` and its sisters."""
    match = _RULE.match(line)
    if match is None:
        return
    action, chain, words = match[1], match[2], match[3]
    if action in {"-P", "--policy"}:
        block.chains.setdefault(chain, [])
        block.policies[chain] = words.split(" ")[0]
    elif action in {"-N", "--new-chain"}:
        block.chains.setdefault(chain, [])
    elif action in {"-I", "--insert"}:
        place, _, rest = words.partition(" ")
        block.add(chain, rest if place.isdigit() else words, int(place) - 1 if place.isdigit() else 0)
    else:
        block.add(chain, words)


def _is_prompt(line: str) -> bool:
    """``root@relay:~# iptables-save``, ``$ sudo iptables -S``, ``[root@relay ~]# ...``."""
    return bool(
        re.match(r"(?:\[?[\w.-]+@[\w.-]+[^#$%>]*|[\w.~/-]+)?[#$%>](?:\s|$)", line)
    ) and not line.startswith("#!")


def _pieces(line: str) -> Iterator[str]:
    """The commands of a line, at ``;``, ``&&``, ``||`` and ``|`` outside of quotes."""
    _, _, after = (
        line.partition("=") if re.match(r"\w+\s*=\s*\S*\s*(?:sudo\s|/|ip6?tables)", line) else ("", "", line)
    )
    try:
        lexer = shlex.shlex(after, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        lexer.commenters = ""
        words = list(lexer)
    except ValueError:
        yield after
        return
    piece: list[str] = []
    for word in words:
        if word and not word.strip(";&|"):
            yield " ".join(piece)
            piece = []
        else:
            piece.append(word if word == "!" or word.isalnum() else shlex.quote(word))
    yield " ".join(piece)


class _Listed:
    """``iptables -L -v -n``, turned into the words of ``-A``."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._name = ""
        self._counted = self._numbered = self._named = False

    def chain(self, name: str, policy: str | None) -> None:
        """``Chain POSTROUTING (policy ACCEPT ...)``."""
        self._name = name
        self._block.chains.setdefault(name, [])
        if policy:
            self._block.policies[name] = policy

    def columns(self, line: str) -> None:
        """The heading of a chain's table."""
        head = _COLUMNS.match(line)
        self._numbered = line.startswith("num")
        self._counted = bool(head and head[1])
        self._named = bool(head and head[2])

    def rule(self, line: str) -> None:
        """One row."""
        words = line.split()
        words = words[1 if self._numbered else 0 :]
        words = words[2 if self._counted else 0 :]
        least = 7 if self._named else 5
        if not self._name or len(words) < least - 1:
            return
        target = ""
        if words[0] not in {
            "all",
            "tcp",
            "udp",
            "icmp",
            "0",
            "6",
            "17",
            "sctp",
            "ipv6-icmp",
            "esp",
            "gre",
        } or (
            len(words) > 1 and words[1] in {"all", "tcp", "udp", "icmp", "0", "6", "17", "sctp", "ipv6-icmp"}
        ):
            target, words = words[0], words[1:]
        if not self._named and target in {"SNAT", "MASQUERADE", "NETMAP"}:
            raise UsageError(
                "a listing by `iptables -L` without -v leaves the interfaces out",
                "give it the output of `iptables-save`, or of `iptables -t nat -L -v -n`",
            )
        protocol, words = words[0], words[1:]
        if words and words[0] in {"--", "-f", "!f"}:
            words = words[1:]
        in_, out = (words[0], words[1]) if self._named else ("*", "*")
        words = words[2 if self._named else 0 :]
        made = (
            _option("-p", protocol, {"all", "0"})
            + _option("-i", in_, {"*", "any"})
            + _option("-o", out, {"*", "any"})
        )
        everywhere = {"0.0.0.0/0", "anywhere", "::/0"}
        made += _option("-s", words[0], everywhere) + _option("-d", words[1], everywhere)
        self._block.add(self._name, " ".join([*made, *_extras(" ".join(words[2:]), target)]))

    def block(self) -> Block:
        """What was listed."""
        lines = " ".join(line for rules in self._block.chains.values() for line in rules)
        self._block.table = (
            "nat" if _NAT_TARGET.search(lines) or "POSTROUTING" in self._block.chains else "filter"
        )
        return self._block


def _option(name: str, value: str, nothing: set[str]) -> list[str]:
    if value in nothing:
        return []
    return ["!", name, value[1:]] if value.startswith("!") else [name, value]


_EXTRAS: tuple[tuple[str, str], ...] = (
    (r"/\* (.*?) \*/", r"-m comment --comment '\1'"),
    (r"(?:tcp|udp|sctp) (?:dpts?):(!?)([\w:-]+)", r"\1 --dport \2"),
    (r"(?:tcp|udp|sctp) (?:spts?):(!?)([\w:-]+)", r"\1 --sport \2"),
    (r"(?:dpts?):(!?)([\w:-]+)", r"\1 --dport \2"),
    (r"(?:spts?):(!?)([\w:-]+)", r"\1 --sport \2"),
    (r"multiport (dports|sports|ports) (!? ?)(\S+)", r"-m multiport \2 --\1 \3"),
    (r"(!? ?)match-set (\S+) (\S+)", r"-m set \1 --match-set \2 \3"),
    (r"connmark match\s+(!? ?)(\S+)", r"-m connmark \1 --mark \2"),
    (r"mark match\s+(!? ?)(\S+)", r"-m mark \1 --mark \2"),
    (r"(!? ?)ctstate (\S+)", r"-m conntrack \1 --ctstate \2"),
    (r"(!? ?)ctorigsrc (\S+)", r"-m conntrack \1 --ctorigsrc \2"),
    (r"(!? ?)state (\S+)", r"-m state \1 --state \2"),
    (r"source IP range (!? ?)(\S+)", r"-m iprange \1 --src-range \2"),
    (r"destination IP range (!? ?)(\S+)", r"-m iprange \1 --dst-range \2"),
    (r"ADDRTYPE match dst-type (!?)(\S+)", r"-m addrtype \1 --dst-type \2"),
    (r"ADDRTYPE match src-type (!?)(\S+)", r"-m addrtype \1 --src-type \2"),
    (r"policy match dir (\S+) pol (\S+)", r"-m policy --dir \1 --pol \2"),
    (r"statistic mode random (!? ?)probability (\S+)", r"-m statistic --mode random \1 --probability \2"),
    (
        r"statistic mode nth (!? ?)every (\d+)(?: packet (\d+))?",
        r"-m statistic --mode nth \1 --every \2 --packet 0\3",
    ),
    (r"MAC ?(!?)([0-9A-Fa-f:]{17})", r"-m mac \1 --mac-source \2"),
    (r"owner UID match (!? ?)(\S+)", r"-m owner \1 --uid-owner \2"),
)
"""What ``-L`` prints of a condition, and how it is written."""

_TARGETS: tuple[tuple[str, str], ...] = (
    (r"to:(\S+)", r"--to-source \1"),
    (r"masq ports: (\S+)", r"--to-ports \1"),
    (r"random-fully", "--random-fully"),
    (r"\brandom\b", "--random"),
    (r"persistent", "--persistent"),
)


def _extras(text: str, target: str) -> list[str]:
    """The last column: more conditions, and what the target is given."""
    words: list[str] = []
    for pattern, form in _EXTRAS:
        while found := re.search(pattern, text):
            words += found.expand(form).split(" ") if "comment" not in form else [found.expand(form)]
            text = f"{text[: found.start()]} {text[found.end() :]}"
    given: list[str] = []
    if target in {"SNAT", "MASQUERADE", "NETMAP"}:
        for pattern, form in _TARGETS:
            if found := re.search(pattern, text):
                wanted = form.replace("--to-source", "--to") if target == "NETMAP" else form
                given.append(found.expand(wanted))
                text = f"{text[: found.start()]} {text[found.end() :]}"
        given += [f"--{shlex.quote(word)}" for word in text.split() if word not in {"tcp", "udp", "prefix"}]
    elif text.strip() and target not in {"ACCEPT", "DROP"}:
        pass  # what another target is given decides on no exit
    elif text.strip() not in {"", "tcp", "udp", "icmp"}:
        words += ["-m", "listed", "--as", shlex.quote(text.strip())]
    return [word for word in [*words, *(["-j", target] if target else []), *given] if word]
