# SPDX-License-Identifier: Apache-2.0
"""Which relays are linkable with each other: the rules that say it, from where canaries sit in their pools.

Relays whose choice follows one fraction have, for every canary, a common point; independent ones rarely. A
fleet is mixed for months, so "all relays share a point" is no test. The rules look for sets, one after the
other:

1. *Anchor*: every relay marks the bin of its canaries' places; the relay whose bins are fullest, beyond
   what even marks give, over all canaries, and that has a large pool, is the anchor of the round.
2. *Match*: a relay matches where its interval and the anchor's overlap, on three of four canaries or more.
   Each overlap is worth -log2 of what chance gives two independent pools (at most 1/N + 1/M - 1/NM; 1/N
   where the pools are equally large), and misses cost what choosing them costs.
3. *Set*: what the matches are worth together, less the choice of the anchor among all relays and of the
   members among them (n H(l/n) bounds the latter). From `Votes.bits` on a set is one: independent relays
   have it in fewer than 2^-bits of the evaluations, whatever their pools.
4. *Member*: of a set: 1. Who matches without enough evidence: 0, "too little to tell".

Then the next round goes on without the anchor and the members, so several secrets are several sets. The
last round asks relays of equally large pools only, and compares places exactly: a function that does not
scale with the pool (another reduction, a permutation that all relays share) keeps the place among equal
pools and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import indent

LOW = "relay_canary_family:exitprint_canary_position:low"
HIGH = "relay_canary_family:exitprint_canary_position:high"
MARK = "relay_canary_family_bin:exitprint_canary_position:mark"
PLACE = "relay_canary_family_place:exitprint_canary_position:mark"
WIDTH = "relay_family:exitprint_canary_position:width"
CANARIES = "relay_family:exitprint_canary_position:count"
ANCHOR = "relay_family:exitprint_canary_anchor:crowd"
AGREES = "relay_family:exitprint_canary_agreement:ratio"
MATCH = "relay_family:exitprint_canary_match:bits"
SET = "fleet_family:exitprint_canary_set:bits"
MEMBER = "relay_family:exitprint_canary_set:member"
LINKED = "relay_family:exitprint_canary_linked:bool"
_RELAY = "on (@fleet, @relay, family)"

HEAD = """\
# SPDX-License-Identifier: Apache-2.0
# Which relays are linkable with each other. Made by `make generate`: tools/rules/canaries.py says how it
# works, docs/fleet.md what it catches and what it does not.
groups:
  - name: exitprint.canaries
    rules:
"""


@dataclass(frozen=True, slots=True)
class Votes:
    """The design of the test.

    Attributes:
        least: votes of a canary on a relay from which on its place is believed.
        bins: of a pool, for the choice of anchors.
        rounds: sets that are looked for, before relays of equal pools are compared.
        share: of the canaries that have to agree.
        bits: evidence, after every choice was paid for, from which on a set is one.
        member: bits that a member brings beyond what finding as many by chance takes.
        told: bits that a relay's canaries must be able to bring for it to be called not linked.
    """

    least: int = 2
    bins: int = 16
    rounds: int = 3
    share: float = 0.75
    bits: float = 16
    member: float = 7
    told: float = 10


@dataclass(frozen=True, slots=True)
class _Round:
    """One round.

    Attributes:
        number: from 1 on; it stands in the label `round`.
        equal: only relays of equally large pools are compared.
    """

    number: int
    equal: bool = False

    @property
    def mine(self) -> str:
        """The matcher of this round's series."""
        return f'{{round="{self.number}"}}'

    @property
    def labels(self) -> str:
        """What relays have to have in common to be compared."""
        return "@fleet, family, pool" if self.equal else "@fleet, family"

    def left(self, vector: str) -> str:
        """Of a vector with relay and family, what the rounds before have left."""
        if self.number == 1:
            return vector
        before = f'{{round=~"{"|".join(map(str, range(1, self.number)))}"}}'
        return f"({vector} unless {_RELAY} {ANCHOR}{before} unless {_RELAY} ({MEMBER}{before} == 1))"

    @property
    def relays(self) -> str:
        """How many relays are compared at all."""
        return f"count by ({self.labels}) ({_with_pool() if self.equal else WIDTH})"

    def rule(self, record: str, expr: str, about: str) -> str:
        """A rule whose series have the round's number."""
        return _rule(record, expr, f'round: "{self.number}"', about)


def canary_rules(votes: Votes) -> str:
    """The file of rules."""
    rounds = [_Round(number) for number in range(1, votes.rounds + 1)]
    rounds.append(_Round(votes.rounds + 1, equal=True))
    rules = _places(votes)
    for one in rounds:
        anchor = _equal_anchor(one) if one.equal else _anchor(one, votes)
        agrees = _equal_agreement(one) if one.equal else _agreement(one)
        rules += [anchor, agrees, _match(one, votes), _set(one, votes), _member(one, votes)]
    rules += _linked(votes)
    return HEAD + "\n".join(indent(rule, " " * 6) for rule in rules)


def _rule(record: str, expr: str, labels: str = "", about: str = "") -> str:
    comment = "".join(f"# {line}\n" for line in about.splitlines())
    body = indent(expr.strip("\n"), "    ")
    return f"{comment}- record: {record}\n  expr: |\n{body}\n" + (
        f"  labels: {{{labels}}}\n" if labels else ""
    )


def _places(votes: Votes) -> list[str]:
    low = f"""
max by (@fleet, @relay, canary, family) (exitprint_canary_position_low_ratio)
and on (@fleet, @relay, canary, family)
  max by (@fleet, @relay, canary, family) (exitprint_canary_votes >= {votes.least})
and on (@fleet, @relay)
  relay:exitprint_report:trusted"""
    high = f"""
max by (@fleet, @relay, canary, family) (exitprint_canary_position_high_ratio)
and on (@fleet, @relay, canary, family)
  {LOW}"""
    by = "count_values by (@fleet, @relay, canary, family)"
    return [
        _rule(
            LOW,
            low,
            about=f"Where each canary sits, on relays whose report can be trusted, from {votes.least} votes.",
        ),
        _rule(HIGH, high),
        _rule(
            MARK,
            f'{by} ("bin", floor({votes.bins / 2:g} * ({LOW} + {HIGH})))',
            about=f"The bin of {votes.bins} that the middle of it is in, as a label.",
        ),
        _rule(
            PLACE,
            f'{by} ("place", round(1 / ({HIGH} - {LOW})) + {LOW})',
            about="Size of the pool plus place in it, as a label: the same only where both are.",
        ),
        _rule(
            WIDTH,
            f"avg by (@fleet, @relay, family) ({HIGH} - {LOW})",
            about="1 / N, and how many canaries have a place.",
        ),
        _rule(CANARIES, f"count by (@fleet, @relay, family) ({LOW})"),
    ]


def _with_pool() -> str:
    """1 for each relay, with the size of its pool as a label."""
    return f'count_values by (@fleet, @relay, family) ("pool", round(1 / {WIDTH}))'


def _anchor(one: _Round, votes: Votes) -> str:
    expr = f"""
topk by (@fleet, family) (1,
  (
    sum by (@fleet, @relay, family) (
      {one.left(MARK)}
      * on (@fleet, canary, family, bin) group_left ()
        count by (@fleet, canary, family, bin) ({one.left(MARK)})
    )
    - {CANARIES}
      * on (@fleet, family) group_left ()
        count by (@fleet, family) ({one.left(WIDTH)})
      / {votes.bins}
  )
  * -log2({WIDTH})
  + {_RELAY}
    1e-6 * avg by (@fleet, @relay, family) ({LOW})
)"""
    about = f"Round {one.number}: the relay whose canaries sit where most of the others' do."
    return one.rule(ANCHOR, expr, about)


def _equal_anchor(one: _Round) -> str:
    expr = f"""
topk by (@fleet, family, pool) (1,
  {_with_pool()}
  * {_RELAY} group_left ()
    (
      sum by (@fleet, @relay, family) (
        {one.left(PLACE)}
        * on (@fleet, canary, family, place) group_left ()
          count by (@fleet, canary, family, place) ({one.left(PLACE)})
      )
      + {_RELAY}
        1e-6 * avg by (@fleet, @relay, family) ({LOW})
    )
)"""
    return one.rule(ANCHOR, expr, f"Round {one.number}: the same among relays of equally large pools.")


_AGREEMENT = "On which share of the canaries it agrees with the anchor."


def _agreement(one: _Round) -> str:
    low, high = (
        f"max by (@fleet, canary, family) ({end} and {_RELAY} {ANCHOR}{one.mine})" for end in (LOW, HIGH)
    )
    expr = f"""
avg by (@fleet, @relay, family) (
  ({LOW} < bool on (@fleet, canary, family) group_left () {high})
  * ({HIGH} > bool on (@fleet, canary, family) group_left () {low})
)"""
    return one.rule(AGREES, expr, _AGREEMENT)


def _equal_agreement(one: _Round) -> str:
    same = f"max by (@fleet, canary, family, place) ({PLACE} and {_RELAY} {ANCHOR}{one.mine})"
    expr = f"""
{_with_pool()}
* {_RELAY} group_left ()
  count by (@fleet, @relay, family) ({PLACE} and on (@fleet, canary, family, place) {same})
/ {_RELAY} group_left ()
  {CANARIES}"""
    return one.rule(AGREES, expr, _AGREEMENT)


def _match(one: _Round, votes: Votes) -> str:
    if one.equal:
        worth = f"-log2({WIDTH})"
        by = f"{_RELAY} group_left ()"
    else:
        to_anchor = "on (@fleet, family) group_left ()"
        width = f"max by (@fleet, family) ({WIDTH} and {_RELAY} {ANCHOR}{one.mine})"
        worth = f"""(
    -log2(1 - (1 - {WIDTH}) * {to_anchor} (1 - {width}))
    + 0.9 * (abs({WIDTH} / {to_anchor} {width} - 1) < bool 1e-6)
  )"""
        by = _RELAY
    agrees = f"({one.left(f'{AGREES}{one.mine}')} >= {votes.share:g})"
    misses = f"((1 - {agrees}) * {by} {CANARIES})"
    expr = f"""
{agrees}
* {by}
  {CANARIES}
* {by}
  {worth}
- {misses}
  * {by}
  log2(2.72 * {CANARIES} / {_RELAY} clamp_min({_flat(misses, one)}, 1))
unless {_RELAY}
  {ANCHOR}{one.mine}"""
    about = f"What agreeing with the anchor on {votes.share:.0%} of the canaries or more is worth."
    return one.rule(MATCH, expr, about)


def _flat(vector: str, one: _Round) -> str:
    """A vector of relays without the label of the pool."""
    return f"max by (@fleet, @relay, family) ({vector})" if one.equal else vector


def _enough(one: _Round, votes: Votes) -> str:
    """Matches that are members if there is a set: few are so many by chance."""
    match = f"{MATCH}{one.mine}"
    return (
        f"({match} >= on ({one.labels}) group_left ()"
        f" ({votes.member:g} + log2({one.relays} / count by ({one.labels}) ({match}))))"
    )


def _set(one: _Round, votes: Votes) -> str:
    enough = _enough(one, votes)
    others, found = f"({one.relays} - 1)", f"count by ({one.labels}) ({enough})"
    expr = f"""
sum by ({one.labels}) ({enough})
- on (@fleet, family) group_left ()
  log2(count by (@fleet, family) ({WIDTH}))
- {found} * log2({others} / {found})
- ({others} - {found}) * log2({others} / clamp_min({others} - {found}, 1))"""
    return one.rule(
        SET, expr, "What that is worth together, less the choice of the anchor and of the members."
    )


def _member(one: _Round, votes: Votes) -> str:
    found = f"({SET}{one.mine} >= {votes.bits:g})"
    anchor = f"{ANCHOR}{one.mine}"
    expr = f"""
1 + 0 * ({_enough(one, votes)} and on ({one.labels}) {found})
or
1 + 0 * ({anchor} and on ({one.labels}) {found})
or
0 * {MATCH}{one.mine}
or
0 * ({anchor} and on ({one.labels}) {MATCH}{one.mine})"""
    return one.rule(MEMBER, expr, "1: of the set. 0: it agrees, too little to tell.")


def _linked(votes: Votes) -> list[str]:
    linked = f"""
max by (@fleet, @relay, family) ({MEMBER}) == 1
or {_RELAY}
  0 * (
    ({CANARIES} * (-log2({WIDTH}) - 1)) >= {votes.told:g}
    and on (@fleet, family)
      count by (@fleet, family) ({WIDTH}) > 1
    unless {_RELAY}
      {MEMBER}
  )"""
    member = f"({MEMBER} == 1)"
    in_set = f"{member} * {_RELAY} group_left ()"
    bits = f"""
max by (@fleet, family) (
  sum without (@relay) ({in_set} -log2({WIDTH}))
  - log2(sum without (@relay) ({in_set} (1 / {WIDTH})) - count without (@relay) ({member}) + 1)
)
or on (@fleet, family)
  0 * fleet_family:exitprint_linked_relays:count"""
    return [
        _rule(
            LINKED, linked, about="1: linkable with other relays. 0: in no set. Absent: too little to tell."
        ),
        _rule("fleet_family:exitprint_linked_relays:count", f"sum by (@fleet, family) ({LINKED})"),
        _rule(
            "fleet_family:exitprint_linked_bits:max",
            bits,
            about="What the exits of one peer on the largest set tell: log2 of all tuples of exits that the\n"
            "pools could give over those that one fraction can, at most sum(N) - R + 1.",
        ),
    ]
