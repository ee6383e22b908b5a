# SPDX-License-Identifier: Apache-2.0
"""Counts the flows of a listing, and tells the analysis what they say.

Whatever the batches that the flows come in, the counts are the same: all that one batch has to know of those
before it is remembered. See bpf/contrasts.h and bpf/observe.h for what is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import numpy as np
from numpy.typing import NDArray

from detector.analysis.kernel_columns import Packed
from detector.analysis.observation import Loss, Observation, Panes, PredictorTrials, Trials
from detector.analysis.panes import panes_of
from detector.base.family import Address, Family, family_of, unpack
from detector.base.flows import FLOW_CLASSES
from detector.base.ranges import AddressRange
from detector.conntrack.addresses import Mask, is_inside
from detector.conntrack.evidence import MEMORY, PANE, Evidence, Pile
from detector.conntrack.peers import NO_ROOM, NOBODY, Peers
from detector.conntrack.reader import Flows
from detector.conntrack.votes import KeptVotes, Votes, destination_trials, hashes
from detector.counts.columns import Columns
from detector.nat.mapping import Mapping, mapping_of
from detector.nat.model import RuleSet
from detector.nat.pools import ExitPool as ExitPools
from detector.predictors.fit import Fit, Fitter
from detector.predictors.guess import GUESS, guessed_ranges, hashed_ranges, joined
from detector.predictors.kernel_hash import source_hash
from detector.predictors.pool import ExitPool

Index = NDArray[np.int64]
Counts = NDArray[np.uint32]

FAMILIES = tuple(Family)
MAX_PAIRS = 1 << 21
MAX_EXITS = 1 << 18
MAX_RANGES = 4  # that one exit is tried on, as in the kernel program
_EXIT_BITS = np.uint64(32)
_EXIT_MASK = np.uint64(0xFFFFFFFF)
_CLASSES = len(FLOW_CLASSES)
_PAIR_COUNTS = 2 + _CLASSES  # flows, session starts, votes by class
_MOSTLY = 0.9  # of the flows go to private networks: then those are what there is
_POINTS = 512
FEWEST_PANES = 3  # of the service's length, to say how exits change over them
MOST_PANES = 48
_MOST_CELLS = 1 << 21


@dataclass(slots=True)
class Aside:
    """Flows that are not judged, and why.

    Attributes:
        strangers: translated flows of nobody in the list of peers.
        elsewhere: translated flows by an exit that is in none of the pools that were given.
        inside: flows translated on their way into a private network.
        no_room: flows that a full table refused.
        networks: flows of peers that are networks.
    """

    strangers: int = 0
    elsewhere: int = 0
    inside: int = 0
    no_room: int = 0
    networks: int = 0


@dataclass(slots=True)
class Told:
    """What was given beside the flows.

    Attributes:
        rules: those of the relay, none where nobody gave them.
        pools: that a person gave.
        pools_only: families in which, without a list of peers, an exit outside of the pools is no peer's.
    """

    rules: RuleSet = field(default_factory=RuleSet)
    pools: Sequence[AddressRange] = ()
    pools_only: frozenset[Family] = frozenset()


class Tally:
    """The counts of one listing.

    Args:
        peers: whose flows count.
        told: what is known of the relay; where that names no pool of a family, the pools are guessed.
        session_gap: seconds without a new flow of a peer that end its session.
        memory: places that are remembered.
        pairs: pairs of peer and exit that are counted.

    Attributes:
        aside: flows that are not judged.
        guessed: families whose pools were guessed.
        beyond: what ranges are called that the flows show, and the rules that were given do not have.
        counted: flows that were looked at and translated.
    """

    def __init__(
        self, peers: Peers, told: Told, session_gap: float, *, memory: int = MEMORY, pairs: int = MAX_PAIRS
    ) -> None:
        self.aside = Aside()
        self.guessed: set[Family] = set()
        self.beyond: set[str] = set()
        self.counted = 0
        self._peers = peers
        self._told = told
        self._given = mapping_of(told.rules, told.pools)
        self._only = np.array([family in told.pools_only for family in FAMILIES])
        self._most_pairs = pairs
        self._exits = _Exits(self._given)
        self._number_of = _Numbers()
        self._evidence = Evidence(session_gap, memory)
        self._kept = KeptVotes()
        self._pairs = Pile(_PAIR_COUNTS)
        self._by_strangers = np.zeros(0, np.int64)
        self._seen = np.zeros(len(FAMILIES), np.int64)
        self._refused = np.zeros(len(FAMILIES), np.int64)
        self._lost = np.zeros(len(FAMILIES), np.int64)
        self._untranslated = _Untranslated()
        self._inside_counts: bool | None = None

    def add(self, flows: Flows) -> None:
        """Count some more flows, in the order of time."""
        translated = flows.translated
        if translated.any():
            self._add_translated(flows if translated.all() else flows.take(translated))
        if not translated.all():
            self._untranslated.add(flows.take(~translated), self._peers, self._number_of)

    def _add_translated(self, flows: Flows) -> None:
        self.counted += len(flows)
        exits = _numbers(flows.exit, self._number_of.__getitem__)
        self._exits.grow(self._number_of)
        pooled = self._exits.pooled[exits]
        kept = self._going_out(flows, pooled)
        if not kept.all():
            flows, exits, pooled = flows.take(kept), exits[kept], pooled[kept]
        rows = self._attribute(flows, exits, pooled)
        mine = np.flatnonzero((rows >= 0) & (exits >= 0))
        self._lose(flows, (rows == NO_ROOM) | ((rows >= 0) & (exits < 0)))
        if len(mine) < len(flows):
            flows, rows, exits = flows.take(mine), rows[mine], exits[mine]
        if len(flows):
            self._count(flows, rows, exits)

    def _going_out(self, flows: Flows, pooled: Mask) -> Mask:
        """All but flows into a private network, unless those are what there is, as in a laboratory."""
        if self._inside_counts is None:
            self._inside_counts = float(np.mean(flows.inside)) >= _MOSTLY
        if self._inside_counts:
            return np.ones(len(flows), np.bool_)
        dropped = flows.inside & ~pooled
        self.aside.inside += int(np.count_nonzero(dropped))
        return ~dropped

    def _attribute(self, flows: Flows, exits: Index, pooled: Mask) -> Index:
        """The row of each flow's peer, negative for a flow that is not counted."""
        if self._peers.listed:
            rows = _numbers(flows.source, self._peers.__getitem__)
            strange = rows == NOBODY
            self.aside.strangers += int(np.count_nonzero(strange))
            self._by_strangers = _added(
                self._by_strangers, exits[strange & (exits >= 0)], len(self._number_of)
            )
            return rows
        refused = ~pooled & np.where(flows.four, *self._only)
        self.aside.elsewhere += int(np.count_nonzero(refused))
        self._refused += _by_family(flows, refused)
        rows = np.full(len(flows), NOBODY, np.int64)
        asked = np.flatnonzero(~refused)
        rows[asked] = _numbers(flows.source[asked], self._peers.__getitem__)
        return rows

    def _lose(self, flows: Flows, which: Mask) -> None:
        self.aside.no_room += int(np.count_nonzero(which))
        self._lost += _by_family(flows, which)

    def _count(self, flows: Flows, rows: Index, exits: Index) -> None:
        self._evidence.grow(len(self._peers.allowed))
        pairs = rows.astype(np.uint64) << _EXIT_BITS | exits.astype(np.uint64)
        fitting = self._fitting(pairs)
        self._seen += _by_family(flows, fitting)
        self._lose(flows, ~fitting)
        votes, begins = self._evidence.add(flows, rows, exits)
        chosen = np.flatnonzero(votes)
        if len(chosen):
            self._kept.add(Votes.of(flows.take(chosen), rows[chosen], exits[chosen]))
        counted = np.zeros((len(rows), _PAIR_COUNTS), np.uint32)
        counted[:, 0] = 1
        counted[:, 1] = begins
        counted[chosen, 2 + flows.kind[chosen]] = 1
        self._pairs.add(Columns.of(pairs[fitting], counted[fitting]))

    def _fitting(self, pairs: NDArray[np.uint64]) -> Mask:
        """Which pairs there is room for."""
        if self._pairs.at_most + len(pairs) <= self._most_pairs:
            return np.ones(len(pairs), np.bool_)
        known = self._pairs.total().keys
        fresh = np.setdiff1d(pairs, known)
        return ~np.isin(pairs, fresh[max(self._most_pairs - len(known), 0) :])

    def votes(self) -> Votes | None:
        """A sample of the votes, in the order of time."""
        return self._kept.all()

    def mapping(self) -> Mapping:
        """The pools that were given, and guessed ones for each family without any.

        Where rules were given, ranges that the kernel's hash shows beside them are among the `choices` and
        `ranges`: flows may be from before the rules.
        """
        known = {pool.family for pool in self._given.pools}
        used = self._exits.addresses(self._number_of)
        guessed: list[AddressRange] = []
        beyond: list[AddressRange] = []
        for family in FAMILIES:
            exits = [address for address in used if family_of(address) is family]
            hashed = self._hashed(family) if exits else []
            if family in known:
                beyond += [one for one in hashed if not self._is_given(one)]
            elif exits:
                self.guessed.add(family)
                guessed += joined(hashed, guessed_ranges(exits))
        mapping = self._given
        if guessed:
            mapping = mapping_of(self._told.rules, [*self._told.pools, *guessed])
            mapping = replace(mapping, pools=tuple(self._as_guess(pool) for pool in mapping.pools))
        more = [ExitPool(one.first, one.last, origin=f"{one.first} to {one.last}") for one in beyond]
        self.beyond = {one.origin for one in more}
        return replace(
            mapping,
            choices=(*mapping.choices, *more),
            ranges=tuple(dict.fromkeys((*mapping.ranges, *((one.first, one.last) for one in beyond)))),
        )

    def _is_given(self, one: AddressRange) -> bool:
        """Whether a rule chooses from this very range by the kernel's hash, or a person gave it as a pool."""
        ends = one.first, one.last
        return any((choice.first, choice.last) == ends and choice.is_range for choice in self._given.choices)

    def _as_guess(self, pool: ExitPools) -> ExitPools:
        return replace(pool, origin=GUESS) if pool.family in self.guessed else pool

    def only_networks(self, family: Family) -> bool:
        """Whether all peers with flows are networks."""
        rows = np.unique((self._pairs.total().keys >> _EXIT_BITS).astype(np.int64))
        some = [self._peers.allowed[row] for row in rows.tolist()]
        mine = [one for one in some if one.family is family]
        return bool(mine) and all(one.is_network for one in mine)

    def _hashed(self, family: Family) -> list[AddressRange]:
        """Ranges that the kernel's hash chose from, of the tunnel address or of it and the destination."""
        persons = self._busiest(family)
        rng = np.random.default_rng(0)
        if len(persons) > _POINTS:
            persons = [persons[index] for index in np.sort(rng.choice(len(persons), _POINTS, replace=False))]
        found = hashed_ranges((source_hash(tunnel), exit_) for tunnel, exit_, _ in persons)
        votes = self._kept.all()
        if votes is not None:
            votes = votes.take(votes.four == (family is Family.IPV4))
        if votes is not None and len(votes):
            if len(votes) > _POINTS:
                votes = votes.take(np.sort(rng.choice(len(votes), _POINTS, replace=False)))
            exits = [unpack(one) for one in as_bytes(votes.exit)]
            found = joined(found, hashed_ranges(zip(hashes(votes).tolist(), exits, strict=True)))
        return found

    def _busiest(self, family: Family) -> list[tuple[Address, Address, int]]:
        """Tunnel address, the exit of most of its flows, and row, of each person of a family."""
        total = self._pairs.total()
        rows, exits = (total.keys >> _EXIT_BITS).astype(np.int64), (total.keys & _EXIT_MASK).astype(np.int64)
        order = np.lexsort((exits, total.counts[:, 0], rows))
        last = order[np.flatnonzero(np.diff(rows[order], append=-1))]
        used = self._exits.addresses(self._number_of)
        persons = []
        for row, exit_ in zip(rows[last].tolist(), exits[last].tolist(), strict=True):
            one = self._peers.allowed[row]
            if one.family is family and not one.is_network:
                persons.append((one.address, used[exit_], row))
        return persons

    def observations(self, mapping: Mapping) -> list[Observation]:
        """What the analysis is told, one family after the other."""
        return [self._observation(family, mapping) for family in FAMILIES]

    def _observation(self, family: Family, mapping: Mapping) -> Observation:
        allowed = self._peers.allowed
        self._evidence.grow(len(allowed))
        rows = np.array([row for row, one in enumerate(allowed) if one.family is family], np.int64)
        peer_of_row = np.full(len(allowed), NOBODY, np.int64)
        peer_of_row[rows] = np.arange(len(rows))
        total = self._pairs.total()
        pair_peers = (
            peer_of_row[(total.keys >> _EXIT_BITS).astype(np.int64)]
            if len(allowed)
            else np.zeros(0, np.int64)
        )
        mine = total.keep(pair_peers >= 0)
        peers = pair_peers[pair_peers >= 0]
        predicted = _predicted(mapping, self._peers, rows)
        used = _Numbering(self._exits.addresses(self._number_of), mine, predicted)
        pools = [pool for pool in mapping.pools if pool.family is family]
        trials = _dense(self._evidence.trials.total(), rows, 4)
        lone = self._evidence.lone_returns(rows)
        networks = np.array([allowed[row].is_network for row in rows.tolist()], np.bool_)
        persons = self._busiest(family)
        private, public = self._untranslated.of(rows, self._peers)
        return Observation(
            family=family,
            peers=len(rows),
            exits=used.addresses,
            pool=np.array(
                [next((n for n, pool in enumerate(pools) if one in pool), -1) for one in used.addresses],
                np.int32,
            ),
            pool_sizes=tuple(pool.size for pool in pools),
            pool_origins=tuple(pool.origin for pool in pools),
            peer=peers.astype(np.uint32),
            exit=used.renumbered((mine.keys & _EXIT_MASK).astype(np.int64)).astype(np.uint32),
            flows=mine.counts[:, 0],
            votes=mine.counts[:, 2:].sum(axis=1, dtype=np.uint32),
            session_starts=mine.counts[:, 1],
            same_destination=Trials(trials[:, 0], trials[:, 1]),
            same_port=Trials(trials[:, 2], trials[:, 3]),
            destination_predictor=self._destination_trials(family, mapping, rows),
            predicted=used.predictions,
            is_network=networks,
            exclusive_map=family in mapping.exclusive,
            rules_say=frozenset(verdict for one, verdict in mapping.lasting if one is family),
            loss=self._loss(family, mapping),
            class_votes=np.ascontiguousarray(mine.counts[:, 2:]),
            vote_sandwiches=self._evidence.vote_sandwiches(rows),
            return_sandwiches=self._evidence.return_sandwiches(rows),
            lone_returns=Trials(*lone),
            sessions=self._evidence.sessions(rows),
            untranslated_global=public,
            untranslated_private=private,
            untracked=np.zeros(len(rows), np.uint32),
            port_blocks=self._evidence.port_blocks[rows],
            seconds=self._span(),
            panes=self._panes(family, peer_of_row, used, len(rows)),
            predictor_trials=tuple(_trials_of(family, mapping, persons, peer_of_row)),
        )

    def _span(self) -> float | None:
        """Seconds between the first and the last vote, None where none has a time."""
        votes = self._kept.all()
        if votes is None or np.isnan(votes.time).all():
            return None
        return float(np.nanmax(votes.time) - np.nanmin(votes.time))

    def _panes(self, family: Family, peer_of_row: Index, used: _Numbering, peers: int) -> Panes | None:
        """The kept votes by pane, where they reach over enough of them to compare."""
        votes, span = self._kept.all(), self._span()
        if votes is None or span is None or span < FEWEST_PANES * PANE:
            return None
        votes = votes.take((votes.four == (family is Family.IPV4)) & ~np.isnan(votes.time))
        if not len(votes):
            return None
        exits = len(used.addresses)
        length = max(PANE, span / MOST_PANES, span * exits / _MOST_CELLS)
        count = int(span // length) + 1
        since = float(np.nanmin(self._kept.all().time))  # type: ignore[union-attr]
        pane = ((votes.time - since) // length).astype(np.int64)
        peer, exit_ = peer_of_row[votes.row], used.renumbered(votes.exit_id)
        cells, many = np.unique((pane * peers + peer) * exits + exit_, return_counts=True)
        return panes_of(
            cells // (peers * exits), cells // exits % peers, cells % exits, many.astype(np.float64),
            (count, peers, exits),
        )  # fmt: skip

    def _destination_trials(self, family: Family, mapping: Mapping, rows: Index) -> Trials:
        everyone = len(self._peers.allowed)
        tried, hit, expected = (np.zeros(everyone) for _ in range(3))
        votes = self._kept.all()
        if votes is not None:
            votes = votes.take(votes.four == (family is Family.IPV4))
            ranges = [(first, last) for first, last in mapping.ranges if family_of(first) is family]
            row, hits, chance = destination_trials(votes, ranges, MAX_RANGES)
            tried += np.bincount(row, minlength=everyone)
            hit += np.bincount(row, weights=hits, minlength=everyone)
            expected += np.bincount(row, weights=chance, minlength=everyone)
        return Trials(tried[rows].astype(np.uint32), hit[rows].astype(np.uint32), expected[rows])

    def _loss(self, family: Family, mapping: Mapping) -> Loss:
        """What the coverage is made of; strangers count where they share pools or exits with peers."""
        index = FAMILIES.index(family)
        used = self._exits.addresses(self._number_of)
        shared = set((self._pairs.total().keys & _EXIT_MASK).astype(np.int64).tolist())
        strangers = sum(
            count
            for number, count in enumerate(self._by_strangers.tolist())
            if count
            and family_of(used[number]) is family
            and (number in shared or any(used[number] in pool for pool in mapping.pools))
        )
        return Loss(int(self._seen[index]), int(self._lost[index]), int(self._refused[index]) + strangers)


def _trials_of(
    family: Family, mapping: Mapping, persons: Sequence[tuple[Address, Address, int]], peer_of_row: Index
) -> list[PredictorTrials]:
    """The predictors of the tunnel address alone, on the busiest exit of each person."""
    if not persons:
        return []
    choices = [one for one in mapping.choices if family_of(one.first) is family]
    fits = Fitter().fit([tunnel for tunnel, _, _ in persons], [exit_ for _, exit_, _ in persons], choices)
    rows = [row for _, _, row in persons]
    return [_told_of(fit, rows, peer_of_row) for fit in fits]


def _told_of(fit: Fit, rows: Sequence[int], peer_of_row: Index) -> PredictorTrials:
    flagged = None
    if fit.holds:
        flagged = np.zeros(int(peer_of_row.max()) + 1, np.bool_)
        flagged[peer_of_row[[rows[index] for index in fit.hits]]] = True
    return PredictorTrials(fit.predictor, fit.rule, fit.tried, fit.hit, fit.chance, fit.hypotheses, flagged)


def _predicted(mapping: Mapping, peers: Peers, rows: Index) -> dict[str, list[list[Address | None]]]:
    """Per predictor, an exit for each peer and pool."""
    wanted = [peers.allowed[row] for row in rows.tolist()]
    everyone = [one.address for one in peers.allowed if not one.is_network]
    said = mapping.predict(wanted, everyone)
    names = dict.fromkeys(name for one in said for name in one)
    width = max((len(exits) for one in said for exits in one.values()), default=0)
    return {
        name: [
            [None if text is None else ip_address(text) for text in one.get(name, [None] * width)]
            for one in said
        ]
        for name in names
    }


class _Exits:
    """Which exits are in a pool that was given."""

    def __init__(self, given: Mapping) -> None:
        self._pools = given.pools
        self.pooled = np.zeros(1, np.bool_)  # the last place is that of exits without a number
        self._known: list[Address] = []

    def addresses(self, numbers: _Numbers) -> list[Address]:
        """Every exit that was met, by number."""
        for packed in list(numbers)[len(self._known) :]:
            self._known.append(unpack(packed))
        return self._known

    def grow(self, numbers: _Numbers) -> None:
        """Look at those that are new."""
        before = len(self._known)
        fresh = self.addresses(numbers)[before:]
        if fresh:
            found = [any(one in pool for pool in self._pools) for one in fresh]
            self.pooled = np.concatenate([self.pooled[:-1], found, [False]])


class _Numbers(dict[bytes, int]):
    """Exit, as 16 bytes, to its number; `NO_ROOM` where there are too many."""

    def __missing__(self, packed: bytes) -> int:
        if len(self) >= MAX_EXITS:
            return -1
        self[packed] = number = len(self)
        return number


class _Numbering:
    """Exits of one family, numbered anew without gaps, and what is predicted in those numbers."""

    def __init__(
        self, known: Sequence[Address], pairs: Columns, predicted: dict[str, list[list[Address | None]]]
    ) -> None:
        seen = np.unique((pairs.keys & _EXIT_MASK).astype(np.int64))
        self._new = np.full(len(known) + 1, NOBODY, np.int64)
        self._new[seen] = np.arange(len(seen))
        index = {known[number]: place for place, number in enumerate(seen.tolist())}
        self.predictions: dict[str, NDArray[np.int32]] = {}
        for name, table in predicted.items():
            numbers = [
                [-1 if one is None else index.setdefault(one, len(index)) for one in row] for row in table
            ]
            self.predictions[name] = np.array(numbers, np.int32).reshape(len(table), -1)
        self.addresses = tuple(index)

    def renumbered(self, numbers: Index) -> Index:
        """The new numbers."""
        new: Index = self._new[numbers]
        return new


class _Untranslated:
    """Flows that left with the address that they came with, of peers."""

    MOST = 1 << 17

    def __init__(self) -> None:
        self._counts: dict[bytes, list[int]] = {}

    def add(self, flows: Flows, peers: Peers, exits: _Numbers) -> None:
        """Those to the internet; not those to the relay itself."""
        out = flows.take(~flows.inside)
        if not len(out):
            return
        texts, counts = np.unique(np.ascontiguousarray(out.source).view("V16").ravel(), return_counts=True)
        to_relay: dict[bytes, int] = {}
        for source, site in zip(as_bytes(out.source), as_bytes(out.destination), strict=True):
            if site in exits:
                to_relay[source] = to_relay.get(source, 0) + 1
        for text, count in zip(texts.tolist(), counts.tolist(), strict=True):
            if peers.listed and peers[text] < 0:
                continue
            if text in self._counts or len(self._counts) < self.MOST:
                self._counts.setdefault(text, [0])[0] += count - to_relay.get(text, 0)

    def of(self, rows: Index, peers: Peers) -> tuple[Counts, Counts]:
        """By peer, those of private and of global addresses."""
        private, public = np.zeros(len(peers.allowed), np.uint32), np.zeros(len(peers.allowed), np.uint32)
        for text, (count,) in self._counts.items():
            row = peers[text] if peers.listed else peers.get(text, NOBODY)
            if row >= 0 and count > 0:
                inside = is_inside(np.frombuffer(text, np.uint8).reshape(1, 16))[0]
                (private if inside else public)[row] += count
        return private[rows], public[rows]


def as_bytes(packed: Packed) -> list[bytes]:
    """Each address of a column as 16 bytes."""
    texts: list[bytes] = np.ascontiguousarray(packed).view("V16").ravel().tolist()
    return texts


def _numbers(packed: Packed, number: Callable[[bytes], int]) -> Index:
    """What `number` gives each address, shape (n,)."""
    return np.fromiter(map(number, as_bytes(packed)), np.int64, len(packed))


def _by_family(flows: Flows, which: Mask) -> Index:
    four = int(np.count_nonzero(which & flows.four))
    return np.array([four, int(np.count_nonzero(which)) - four], np.int64)


def _added(counts: Index, numbers: Index, most: int) -> Index:
    more = np.bincount(numbers, minlength=most)
    more[: len(counts)] += counts
    return more


def _dense(trials: Columns, rows: Index, width: int) -> Counts:
    """Shape (P, width): zeros for peers without any."""
    place = np.searchsorted(trials.keys, rows.astype(np.uint64))
    dense = np.zeros((len(rows), width), np.uint32)
    if len(trials.keys):
        found = trials.keys[np.minimum(place, len(trials.keys) - 1)] == rows.astype(np.uint64)
        dense[found] = trials.counts[place[found]]
    return dense
