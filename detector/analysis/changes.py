# SPDX-License-Identifier: Apache-2.0
"""What a change of the rules did to the mapping: each peer's exit of its own, before against after.

A peer that gave most of its votes to one exit has an exit of its own. For the peers that have one before and
after, three things are held against dealing the exits of after to other peers: the same exit again, the same
step for everybody (a block that moved), the same relative position in a pool of another size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from detector.analysis.columns import VOTES_TO_JUDGE
from detector.analysis.numerics import log_binomial_tail
from detector.analysis.observation import Observation
from detector.base.family import Address

_LOG_LEVEL = float(np.log(0.001))
_FEWEST = 3  # peers with votes before and after: below that, nothing is said
_KEEPS = 0.25  # share of the peers with an exit of their own from which there is something to compare
_MOST = 0.9  # share from which it holds for all
_PRIOR_PEERS = 2.0  # for which even chance counts, beside what dealing gives
_WORD = 1 << 64
_LARGEST = 1 << 31  # pool whose positions can be multiplied in a word

Range = tuple[Address, Address]
Words = NDArray[np.uint64]


class Outcome(StrEnum):
    """What became of the mapping.

    `kept`, `shifted`, `rescaled` and `redrawn` are about peers with an exit of their own before and after;
    `ended`, `begun` and `none` say that there were none after, before, or at both times.
    """

    KEPT = "kept"
    SHIFTED = "shifted"
    RESCALED = "rescaled"
    REDRAWN = "redrawn"
    MIXED = "mixed"
    ENDED = "ended"
    BEGUN = "begun"
    NONE = "none"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PrimaryExits:
    """The exits that n peers of one family have for themselves.

    Attributes:
        epoch: the number of the epoch that they are of.
        peer: shape (n,): numbers that stand for the same peers in both epochs, each once.
        exit: shape (n,): index into `exits`.
        exits: exit addresses.
        ranges: first and last address of the family's pools, in order.
        judged: peers that gave enough votes to have one.
    """

    epoch: int
    peer: NDArray[np.int64]
    exit: NDArray[np.intp]
    exits: tuple[Address, ...]
    ranges: tuple[Range, ...]
    judged: int

    @property
    def sticky_share(self) -> float:
        """Share of the judged peers that has an exit of its own, and not the same for everybody."""
        if not self.judged or (len(self.exit) > 1 and (self.exit == self.exit[0]).all()):
            return 0.0
        return len(self.peer) / self.judged

    def without(self, gone: Sequence[int]) -> PrimaryExits:
        """The same without peers that are no more."""
        stays = ~np.isin(self.peer, np.asarray(gone, np.int64))
        return PrimaryExits(
            self.epoch,
            self.peer[stays],
            self.exit[stays],
            self.exits,
            self.ranges,
            self.judged - int((~stays).sum()),
        )


@dataclass(frozen=True, slots=True)
class Change:
    """What the last change of the rules did to one family's mapping.

    Attributes:
        outcome: in one word.
        since: the epoch that this one is compared with.
        peers: peers with an exit of their own before and after.
        same, same_chance: share of them that has the same exit, and what dealing would give.
        moved: share of them that makes the commonest step (not none).
        step: that step, in addresses, or in positions where the pool is the same and its end is followed by
            its beginning; None without any.
        relative: share that has the same relative position in a pool of another size, None for equal sizes.
        sticky_share_before, sticky_share_after: share of the judged peers that has an exit of its own.
    """

    outcome: Outcome
    since: int
    peers: int
    same: float
    same_chance: float
    moved: float
    step: int | None
    relative: float | None
    sticky_share_before: float
    sticky_share_after: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        rounded = {
            name: round(getattr(self, name), 4)
            for name in ("same", "same_chance", "moved", "sticky_share_before", "sticky_share_after")
        }
        return {
            "outcome": self.outcome.value,
            "compared_with": self.since,
            "peers": self.peers,
            **rounded,
            "step": self.step,
            "relative": None if self.relative is None else round(self.relative, 4),
            "why": because(self),
        }


def primary_exits(
    observation: Observation, names: NDArray[np.int64], ranges: Sequence[Range], epoch: int = 0
) -> PrimaryExits:
    """The exits of their own that the peers of an observation have.

    Args:
        observation: one family's window.
        names: shape (P,): what stands for each peer from epoch to epoch, negative for a peer that is gone.
        ranges: first and last address of the family's pools.
        epoch: the number of its epoch.
    """
    votes = np.asarray(observation.votes).astype(np.float64)
    total = np.bincount(observation.peer, votes, observation.peers)
    there = names >= 0
    if observation.is_network is not None:
        there = there & ~observation.is_network
    own = (votes >= VOTES_TO_JUDGE) & (2 * votes > total[observation.peer]) & there[observation.peer]
    judged = int(np.count_nonzero(there & (total >= VOTES_TO_JUDGE)))
    exits = observation.exit[own].astype(np.intp)
    return PrimaryExits(
        epoch, names[observation.peer[own]].astype(np.int64), exits, observation.exits, tuple(ranges), judged
    )


def compare(before: PrimaryExits, after: PrimaryExits) -> Change:
    """What became of the exits of `before` in `after`."""
    _, old, new = np.intersect1d(before.peer, after.peer, assume_unique=True, return_indices=True)
    was, now = before.exit[old], after.exit[new]
    peers = len(was)
    number = {address: index for index, address in enumerate(before.exits)}
    renumbered = np.array([number.get(address, -1) for address in after.exits] or [-1], np.intp)
    same = _Fit.of(was.astype(np.uint64), renumbered[now].astype(np.uint64), _size(before.ranges))
    moved, step = _block(before, after, was, now)
    relative = _relative(before, after, was, now)
    return Change(
        outcome=_outcome(before, after, same, moved, relative),
        since=before.epoch,
        peers=peers,
        same=same.share,
        same_chance=same.chance,
        moved=moved.share,
        step=step,
        relative=None if relative is None else relative.share,
        sticky_share_before=before.sticky_share,
        sticky_share_after=after.sticky_share,
    )


@dataclass(frozen=True, slots=True)
class _Fit:
    """How many peers do as supposed, and the share that would were their exits dealt anew."""

    peers: int
    hits: int
    chance: float
    tries: int = 1

    @classmethod
    def of(cls, expected: Words, found: Words, size: int, tries: int = 1) -> _Fit:
        """`expected` against `found`, shape (n,) each; exits are drawn from `size`."""
        hits, peers = int(np.count_nonzero(expected == found)), len(found)
        values, counts = np.unique(found, return_counts=True)
        if not peers:
            return cls(0, 0, 1.0, tries)
        at = np.minimum(np.searchsorted(values, expected), len(values) - 1)
        met = float(np.where(values[at] == expected, counts[at], 0).sum()) - hits
        return cls(peers, hits, _dealt(met, peers, 1 / max(size, 1)), tries)

    @property
    def share(self) -> float:
        return self.hits / self.peers if self.peers else 0.0

    @property
    def holds(self) -> bool:
        """Whether it is more than chance."""
        return self._significant(self.hits)

    @property
    def seen(self) -> bool:
        """Whether it would have shown, did it hold for half of the peers."""
        return self._significant(-(-self.peers // 2))

    def _significant(self, hits: int) -> bool:
        log_p = log_binomial_tail(self.peers, hits, self.chance) + float(np.log(self.tries))
        return log_p <= _LOG_LEVEL


def _dealt(met: float, peers: int, even: float) -> float:
    """Chance that a peer has what is supposed, from how often others have it; at least `even`."""
    pairs = peers * (peers - 1)
    crossed = met / pairs if pairs else even
    return float(np.clip((peers * crossed + _PRIOR_PEERS * even) / (peers + _PRIOR_PEERS), even, 1.0))


def _block(
    before: PrimaryExits, after: PrimaryExits, was: NDArray[np.intp], now: NDArray[np.intp]
) -> tuple[_Fit, int | None]:
    """The commonest step by which exits moved, and for how many: of addresses, or of positions in a ring."""
    best: tuple[_Fit, int | None] = (_Fit(len(was), 0, 1.0), None)
    for old, new, size in _scales(before, after):
        start, end = old[was], new[now]
        steps = end - start if size is None else (end + np.uint64(size) - start) % np.uint64(size)
        others = steps[steps != 0]
        if not len(others):
            continue
        values, counts = np.unique(others, return_counts=True)
        step = values[counts.argmax()]
        moved = start + step if size is None else (start + step) % np.uint64(size)
        fit = _Fit.of(moved, end, _size(after.ranges), min(max(_size(after.ranges), 1), len(was)))
        if fit.hits > best[0].hits:
            best = fit, _signed(int(step), _WORD if size is None else size)
    return best


def _scales(before: PrimaryExits, after: PrimaryExits) -> list[tuple[Words, Words, int | None]]:
    """Numbers of the exits of before and of after, and the size of the ring that they stand on."""
    scales: list[tuple[Words, Words, int | None]] = [(_numbers(before.exits), _numbers(after.exits), None)]
    size = _size(after.ranges)
    if before.ranges == after.ranges and 1 < size < _LARGEST:
        scales.append((_positions(before), _positions(after), size))
    return scales


def _relative(
    before: PrimaryExits, after: PrimaryExits, was: NDArray[np.intp], now: NDArray[np.intp]
) -> _Fit | None:
    """How many peers stand at the same fraction of the pool, where its size changed."""
    small, large = _size(before.ranges), _size(after.ranges)
    if small == large or not 1 < small < _LARGEST or not 1 < large < _LARGEST:
        return None
    start, end = _positions(before)[was], _positions(after)[now]
    first = start * np.uint64(large) // np.uint64(small)
    last = ((start + np.uint64(1)) * np.uint64(large) - np.uint64(1)) // np.uint64(small)
    hits = int(np.count_nonzero((first <= end) & (end <= last)))
    ordered = np.sort(end)
    inside = np.searchsorted(ordered, last, "right") - np.searchsorted(ordered, first, "left")
    even = min((large / small + 1) / large, 1.0)
    return _Fit(len(was), hits, _dealt(float(inside.sum()) - hits, len(was), even))


def _outcome(
    before: PrimaryExits, after: PrimaryExits, same: _Fit, moved: _Fit, relative: _Fit | None
) -> Outcome:
    if min(before.judged, after.judged) < _FEWEST:
        return Outcome.UNKNOWN
    keeps = before.sticky_share >= _KEEPS, after.sticky_share >= _KEEPS
    if not all(keeps):
        return {(True, False): Outcome.ENDED, (False, True): Outcome.BEGUN}.get(keeps, Outcome.NONE)
    fits = {Outcome.KEPT: same, Outcome.SHIFTED: moved}
    if relative is not None:
        fits[Outcome.RESCALED] = relative
    holding = {outcome: fit for outcome, fit in fits.items() if fit.holds}
    best = max(holding, key=lambda one: holding[one].share, default=None)
    if best and holding[best].share >= _MOST:
        return best
    if holding:
        return Outcome.MIXED
    return Outcome.REDRAWN if same.seen else Outcome.UNKNOWN


def _size(ranges: Sequence[Range]) -> int:
    return sum(int(last) - int(first) + 1 for first, last in ranges)


def _numbers(exits: Sequence[Address]) -> Words:
    """The low 64 bits of addresses; differences of them wrap around, and mean what they should."""
    return np.array([int(address) % _WORD for address in exits], np.uint64)


def _positions(of: PrimaryExits) -> Words:
    """The position of each exit in all pools of the family, laid end to end; the last for an exit of none."""
    found = []
    for address in of.exits:
        passed = 0
        for first, last in of.ranges:
            if address.version == first.version and first <= address <= last:  # type: ignore[operator]
                passed += int(address) - int(first)
                break
            passed += int(last) - int(first) + 1
        found.append(passed)
    return np.array(found, np.uint64)


def _signed(step: int, around: int) -> int:
    """A step on a ring as the shorter way, which may be backwards."""
    return step - around if step > around // 2 else step


def because(change: Change) -> str:
    """What happened, in one sentence for people."""
    compared = f"of {change.peers:,} peers that had an exit of their own before and have one now"
    same = f"{change.same:.0%} {compared} have the same (dealt anew, {change.same_chance:.1%} would)"
    step = f"moved by {change.step} exits" if change.step else "moved"
    words = {
        Outcome.KEPT: f"The change kept the mapping: {same}.",
        Outcome.SHIFTED: f"The change shifted the mapping as a block: {change.moved:.0%} {compared} {step}.",
        Outcome.RESCALED: (
            "The pool has another size and the mapping went along: "
            f"{change.relative or 0:.0%} {compared} are at the same relative position in it."
        ),
        Outcome.REDRAWN: f"The change drew the mapping anew: {same}.",
        Outcome.MIXED: (
            f"The change kept a part of the mapping: {same}; {change.moved:.0%} {step} together, the others "
            "have another exit."
        ),
        Outcome.ENDED: (
            f"Before the change {change.sticky_share_before:.0%} of the peers had an exit of their own; now "
            f"{change.sticky_share_after:.0%} have one."
        ),
        Outcome.BEGUN: (
            f"Before the change {change.sticky_share_before:.0%} of the peers had an exit of their own; now "
            f"{change.sticky_share_after:.0%} have one."
        ),
        Outcome.NONE: "Neither before nor after the change did peers have an exit of their own.",
        Outcome.UNKNOWN: "Too few peers have shown an exit of their own, before or since, to compare them.",
    }
    return words[change.outcome]
