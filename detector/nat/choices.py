# SPDX-License-Identifier: Apache-2.0
"""One draw that is written as several rules, read as the one choice that it is.

``numgen random mod 2 vmap {0 : jump a, 1 : jump b}``, ``jhash ip saddr mod 2 seed 7 0 snat to A`` with its
sisters, and iptables' ladder of ``-m statistic`` rules all choose among addresses that stand in a rule each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from detector.base.ranges import AddressRange
from detector.nat.model import Chooser, Chosen, JHash, Match, NatRule, Numgen, SingleAddress, Slot


@dataclass(frozen=True, slots=True)
class _Part:
    """A rule to one address: under what, and on which numbers of which draw (None: on any)."""

    rule: NatRule
    exits: AddressRange
    others: tuple[Match, ...]
    draw: Match | None

    def goes_with(self, other: _Part) -> bool:
        """Whether the two differ only in the draw and the exit."""
        mine, its = self.rule, other.rule
        return (self.others, mine.flags, mine.families, mine.base) == (
            other.others,
            its.flags,
            its.families,
            its.base,
        )


def joined_choices(rules: Sequence[NatRule]) -> tuple[NatRule, ...]:
    """The same rules, where neighbours that are parts of one draw have become one rule that is `Chosen`."""
    made: list[NatRule] = []
    at = 0
    while at < len(rules):
        parts = _parts(rules, at)
        joined = _joined(parts) if len(parts) > 1 else None
        made.append(joined or rules[at])
        at += len(parts) if joined else 1
    return tuple(made)


def _parts(rules: Sequence[NatRule], at: int) -> list[_Part]:
    """The rules from `at` on that may be one choice: the first has a draw, only the last may have none."""
    first = _part(rules[at])
    if first is None or first.draw is None:
        return []
    parts = [first]
    for rule in rules[at + 1 :]:
        part = _part(rule)
        if part is None or not part.goes_with(first):
            break
        if part.draw is None:
            return [*parts, part]
        if not _same_draw(first.draw, part.draw):
            break
        parts.append(part)
    return parts


def _part(rule: NatRule) -> _Part | None:
    if not isinstance(rule.mapping, SingleAddress):
        return None
    draws = [one for one in rule.matches if one.chooser is not None]
    if len(draws) > 1 or any(one.negated or not one.values for one in draws):
        return None
    others = tuple(one for one in rule.matches if one.chooser is None)
    return _Part(rule, AddressRange.of(rule.mapping.address), others, draws[0] if draws else None)


def _same_draw(one: Match, other: Match) -> bool:
    """Whether two conditions belong together: one number looked at twice, or a ladder of fresh numbers."""
    if one.origin is not None or other.origin is not None:
        return one.origin == other.origin
    if isinstance(one.chooser, Numgen) and isinstance(other.chooser, Numgen):
        return one.chooser.mode is other.chooser.mode
    return one.chooser == other.chooser and not _is_drawn_for_each_rule(one.chooser)


def _is_drawn_for_each_rule(chooser: Chooser | None) -> bool:
    return isinstance(chooser, JHash) and chooser.seed is None


def _joined(parts: Sequence[_Part]) -> NatRule | None:
    draw = parts[0].draw
    if draw is None or draw.chooser is None:
        return None
    fresh = isinstance(draw.chooser, Numgen) and draw.origin is None
    mapping = _ladder(parts, draw.chooser) if fresh else _cases(parts, draw.chooser)
    first = parts[0].rule
    text = "\n".join(dict.fromkeys(part.rule.text for part in parts))
    inherited = sum(one.chooser is None for one in first.matches[: first.inherited])
    if mapping is None:
        return None
    same = len({part.rule.ports for part in parts}) == 1
    return replace(
        first,
        text=text,
        matches=parts[0].others,
        mapping=mapping,
        inherited=inherited,
        ports=first.ports if same else "",
        comment=" / ".join(dict.fromkeys(part.rule.comment for part in parts if part.rule.comment)),
        parts=tuple(part.rule for part in parts),
    )


def _ladder(parts: Sequence[_Part], chooser: Chooser) -> Chosen | None:
    """Each rule draws for itself, and the last takes the rest; shares are taken as equal."""
    if parts[-1].draw is not None:
        return None
    slots = tuple(Slot(number, number, part.exits, part.rule.ports) for number, part in enumerate(parts))
    return Chosen(replace(chooser, modulus=len(parts), offset=0), slots)


def _cases(parts: Sequence[_Part], chooser: Chooser) -> Chosen | None:
    """All look at one number; a last rule without a condition takes the numbers that are left."""
    slots: list[Slot] = []
    for part in parts:
        for value in part.draw.values if part.draw else ():
            first, _, last = value.partition("-")
            if not (first.isdigit() and (last or first).isdigit()):
                return None
            slots.append(Slot(int(first), int(last or first), part.exits, part.rule.ports))
    slots.sort(key=lambda slot: slot.first)
    if parts[-1].draw is None:
        slots = _filled(slots, chooser, parts[-1].exits)
    return Chosen(chooser, tuple(slots))


def _filled(slots: Sequence[Slot], chooser: Chooser, rest: AddressRange) -> list[Slot]:
    """The slots, and `rest` on every number between and after them."""
    filled: list[Slot] = []
    following = chooser.offset
    for slot in slots:
        if slot.first > following:
            filled.append(Slot(following, slot.first - 1, rest))
        filled.append(slot)
        following = max(following, slot.last + 1)
    end = chooser.offset + chooser.modulus
    return [*filled, Slot(following, end - 1, rest)] if following < end else filled
