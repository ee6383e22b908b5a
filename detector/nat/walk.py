# SPDX-License-Identifier: Apache-2.0
"""Follows packets through chains, as the kernel does, and lists the source-NAT rules that they can reach.

nftables and iptables differ in how a rule is written, not in how chains are walked: both readers turn their
rules into `Entry` and leave jumps, gotos, returns and rules that nothing can reach to `Walk`.
"""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from dataclasses import dataclass, field

from detector.base.family import Family
from detector.nat.choices import joined_choices
from detector.nat.model import (
    Chosen,
    FieldMap,
    Mapping,
    Masquerade,
    Match,
    NatRule,
    Netmap,
    NotUnderstood,
    PortsOnly,
    RuleSet,
    Where,
    rule_set,
)

MAX_JUMPS = 64
"""Jumps below each other; the kernel allows 16."""

MAX_STEPS = 200_000
"""Rules visited, over all ways; more is not a rule set that people write but one that multiplies its ways."""


BY_MARK = "a mark that other rules set decides which packets it takes"
"""The doubt about a rule that only marked packets reach: the mark may stand for a peer."""


@dataclass(frozen=True, slots=True)
class Translate:
    """The source is translated, and no further rule is asked."""

    mapping: Mapping
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Jump:
    """On to another chain; `comes_back` tells a jump from a goto."""

    target: str
    comes_back: bool = True


@dataclass(frozen=True, slots=True)
class Return:
    """Back to the chain that jumped here."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Accepted or dropped: the rest of this hook is not asked; `dropped` ends the packet."""

    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Unclear:
    """About source NAT, and not understood."""

    reason: str
    compat: bool = False


Action = Translate | Jump | Return | Stop | Unclear


@dataclass(frozen=True, slots=True)
class Branch:
    """What a rule does with the packets that one more condition lets in; a vmap has one for each value."""

    action: Action
    match: Match | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule: for packets of `families` under `matches`, the branch that fits; none: go on."""

    where: Where
    text: str
    families: frozenset[Family]
    matches: tuple[Match, ...]
    branches: tuple[Branch, ...]


Chains = AnyMapping[str, Sequence[Entry]]


@dataclass(slots=True)
class Walk:
    """Collects the rules of one base chain after another, in the order of their priorities."""

    rules: list[NatRule] = field(default_factory=list)
    unread: list[NotUnderstood] = field(default_factory=list)
    open: frozenset[Family] = frozenset(Family)
    steps: int = 0

    def base(self, chains: Chains, name: str, families: frozenset[Family]) -> None:
        """Walks a base chain with the packets that no earlier base chain has translated for sure."""
        _Way(self, chains).chain(name, families & self.open, (), ())

    def result(self) -> RuleSet:
        """Everything found, each unclear rule once."""
        return rule_set(joined_choices(self.rules), dict.fromkeys(self.unread))


@dataclass(slots=True)
class _Way:
    walk: Walk
    chains: Chains

    def chain(
        self, name: str, families: frozenset[Family], matches: tuple[Match, ...], above: tuple[str, ...]
    ) -> frozenset[Family]:
        """Walks a chain; the families of which some packets come out at its end."""
        left, back = families, frozenset[Family]()
        for entry in self.chains.get(name, ()):
            taken = entry.families & left
            if not taken:
                continue
            self.walk.steps += 1
            if self.walk.steps > MAX_STEPS or name in above or len(above) > MAX_JUMPS:
                self._unclear(entry, "its chains lead into each other without end, or in too many ways")
                return families
            gone, returned = self._entry(entry, taken, matches, (*above, name))
            left, back = left - gone, back | returned
        return left | back

    def _entry(
        self, entry: Entry, taken: frozenset[Family], outer: tuple[Match, ...], above: tuple[str, ...]
    ) -> tuple[frozenset[Family], frozenset[Family]]:
        """What one rule does: the families that get no further in this chain, and those that go back."""
        gone, back = frozenset[Family](), frozenset[Family]()
        for branch in entry.branches:
            went, returned = self._act(entry, branch, taken, outer, above)
            back |= returned
            if not entry.matches and branch.match is None:
                gone |= went
                if not outer and isinstance(branch.action, Translate | Stop):
                    self._close(branch.action, went)
        return gone, back

    def _close(self, action: Action, families: frozenset[Family]) -> None:
        if isinstance(action, Translate) or (isinstance(action, Stop) and action.dropped):
            self.walk.open -= families

    def _act(
        self,
        entry: Entry,
        branch: Branch,
        taken: frozenset[Family],
        outer: tuple[Match, ...],
        above: tuple[str, ...],
    ) -> tuple[frozenset[Family], frozenset[Family]]:
        none = frozenset[Family]()
        own = entry.matches if branch.match is None else (*entry.matches, branch.match)
        matches = (*outer, *own)
        match branch.action:
            case Jump(target, comes_back):
                out = self.chain(target, taken, matches, above)
                return (taken - out, none) if comes_back else (taken, out)
            case Return():
                return taken, taken
            case Stop():
                return taken, none
            case Unclear(reason, compat):
                self._unclear(entry, reason, compat)
                return none, none
            case Translate(mapping, flags):
                self._doubt(entry, mapping, matches)
                rule = NatRule(
                    taken, entry.where, entry.text, matches, mapping, flags, len(outer), len(above) - 1
                )
                self.walk.rules.append(rule)
                return (taken if _is_total(mapping) else none), none

    def _doubt(self, entry: Entry, mapping: Mapping, matches: tuple[Match, ...]) -> None:
        """A condition that may stand for a peer makes even a rule with one exit not understood."""
        if not isinstance(mapping, Masquerade | PortsOnly):
            for reason in dict.fromkeys(one.unclear for one in matches if one.unclear):
                self._unclear(entry, reason)

    def _unclear(self, entry: Entry, reason: str, compat: bool = False) -> None:
        self.walk.unread.append(NotUnderstood(entry.where, entry.text, reason, compat))


def _is_total(mapping: Mapping) -> bool:
    """Whether it translates whatever reaches it."""
    match mapping:
        case Netmap(pairs):
            return any(pair.source is None for pair in pairs)
        case Chosen():
            return mapping.addresses is not None
        case FieldMap():
            return False
        case _:
            return True
