# SPDX-License-Identifier: Apache-2.0
"""How well each predictor of the tunnel address alone explains the exits: by rule, and whose exit it names.

    fitted = Fitter().fit(tunnels, exits, pools, everyone)

`tunnels` and `exits` are addresses of one family, one pair a person: its tunnel address and its busiest exit.
`pools` is one `ExitPool` a rule, in the rule's own order of positions; pools may overlap, since two rules may
choose from the same addresses. `everyone` is every tunnel address of the relay in that family, since ranks
count, or nothing for the persons themselves. Each `Fit` is one predictor on one rule, tried on the persons
whose exit the rule could have given; `detector.analysis.observation.PredictorTrials` is made of its fields,
and `Fit.hits` are the persons (indices into `tunnels`) whose exit it names. Tell `hits` on only where
`Fit.holds`: beyond that they are chance, and nobody's business.

NumPy-free: the sensor, which alone knows tunnel addresses, calls it; listings and simulations call the same.
65,536 persons take some seconds on the first call and less on the next ones, as a `Fitter` keeps the hashes
of the persons of its last call.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from zlib import crc32 as crc32_of

from detector.base.family import Address
from detector.predictors import crc32, kernel_persistent, linear, modulo, netmap, seeded_jhash
from detector.predictors.kernel_hash import position, reciprocal_scale, source_hash
from detector.predictors.pool import ExitPool
from detector.predictors.tails import log_binomial_tail

LOG_LEVEL = math.log(0.002)  # of all fits of a family together
LEAST_EXCESS = 0.05  # less than this beyond chance is no predictor, however many persons there are
LEAST_PERSONS = 3  # whom it names: one or two may have chosen their flows so
_PRIOR_PERSONS = 4.0  # for which even chance counts, beside what dealing gives: few persons meet by accident
_NEIGHBOURS = 9  # persons from which the order of their addresses can say something
_WORD = 1 << 32

Said = list[int | None]
"""The position that a predictor gives each person, None where it gives none."""


@dataclass(frozen=True, slots=True)
class Fit:
    """One predictor, tried for one rule.

    Attributes:
        predictor: its name.
        rule: where the rule stands, for people; empty where nobody knows.
        size: positions of the rule's pool.
        tried: persons that it was tried on.
        hit: those of them whose exit it names.
        chance: share of hits that independent exits would give.
        hypotheses: how many forms and offsets were tried to find the best one.
        tests: fits of this family, this one among them.
        hits: persons whose exit it names, by index; also those that served to find its form and so were not
            tried.
    """

    predictor: str
    rule: str
    size: int
    tried: int
    hit: int
    chance: float
    hypotheses: int = 1
    tests: int = 1
    hits: tuple[int, ...] = field(default=(), repr=False)

    @property
    def log_p(self) -> float:
        """Bound on the log-probability of so many hits in any fit, were the exits independent."""
        found = log_binomial_tail(self.tried, self.hit, self.chance)
        return min(found + math.log(self.hypotheses) + math.log(self.tests), 0.0)

    @property
    def excess(self) -> float:
        """Share of hits beyond chance, 0 to 1."""
        if not self.tried or self.chance >= 1:
            return 0.0
        return max((self.hit / self.tried - self.chance) / (1 - self.chance), 0.0)

    @property
    def holds(self) -> bool:
        """Whether the exits follow it."""
        return self.hit >= LEAST_PERSONS and self.log_p <= LOG_LEVEL and self.excess >= LEAST_EXCESS


class Fitter:
    """Fits predictors again and again; remembers the hashes of the tunnel addresses of the last time."""

    def __init__(self) -> None:
        self._hashes: dict[Address, int] = {}

    def fit(
        self,
        tunnels: Sequence[Address],
        exits: Sequence[Address],
        pools: Sequence[ExitPool],
        everyone: Sequence[Address] = (),
        sure: Sequence[bool] = (),
    ) -> list[Fit]:
        """Every predictor on every rule, by rule and in the order of the bank; see the module.

        Args:
            tunnels: one a person, all of one family, each once.
            exits: the busiest exit of each of them.
            pools: one a rule, of that family.
            everyone: all tunnel addresses of the relay in that family.
            sure: whether most of what was seen of a person left by its busiest exit; empty if nobody knows.
                A rule that takes some of the persons stands out among those.
        """
        known = self._hashes
        self._hashes = {one: known[one] if one in known else source_hash(one) for one in tunnels}
        ordered = sorted(set(map(int, everyone or tunnels)) | set(map(int, tunnels)))
        ranks = {number: rank for rank, number in enumerate(ordered)}
        places = sorted((int(exit_), person) for person, exit_ in enumerate(exits))
        numbers = [number for number, _ in places]
        found: list[Fit] = []
        for pool in pools:
            if pool.size < 2:
                continue
            low, high = bisect_left(numbers, int(pool.first)), bisect_right(numbers, int(pool.last))
            inside = sorted(
                (person, at) for number, person in places[low:high] if (at := pool.index(number)) is not None
            )
            if inside:
                found += self._on_rule(pool, inside, tunnels, sure, ranks)
        return [replace(one, tests=len(found)) for one in found]

    def _on_rule(
        self,
        pool: ExitPool,
        inside: list[tuple[int, int]],
        tunnels: Sequence[Address],
        sure: Sequence[bool],
        ranks: dict[int, int],
    ) -> list[Fit]:
        """The fits of one rule, on all of its persons or on those who are sure: the better of the two."""

        def fits(some: list[tuple[int, int]]) -> list[Fit]:
            persons = [person for person, _ in some]
            mine = [tunnels[person] for person in persons]
            trial = _Trial(pool, persons, mine, [at for _, at in some], self._hashes, ranks)
            return list(trial.fits(len(ranks)))

        whole = fits(inside)
        some = [(person, at) for person, at in inside if sure and sure[person]]
        if not LEAST_PERSONS <= len(some) < len(inside):
            return whole
        better = [min(pair, key=lambda one: one.log_p) for pair in zip(whole, fits(some), strict=True)]
        return [replace(one, hypotheses=2 * one.hypotheses) for one in better]


@dataclass(frozen=True, slots=True)
class _Trial:
    """One rule and the m persons whose exit is in its pool.

    Attributes:
        persons: their indices, in ascending order.
        tunnels: their tunnel addresses.
        positions: of their exits in the pool.
        hashes: the kernel's hash of each tunnel address.
        ranks: of every tunnel address of the relay.
    """

    pool: ExitPool
    persons: list[int]
    tunnels: list[Address]
    positions: list[int]
    hashes: dict[Address, int]
    ranks: dict[int, int]

    def fits(self, everyone: int) -> Iterator[Fit]:
        """All predictors that apply to the pool."""
        pool = self.pool
        if pool.is_range:
            yield self._best(kernel_persistent.NAME, [self._fixed(self._persistent())])
        if (said := self._said(seeded_jhash.predict)) is not None:
            yield self._best(seeded_jhash.NAME, [self._fixed(said)])
        if (said := self._said(netmap.predict)) is not None:
            yield self._best(netmap.NAME, [self._fixed(said)])
        if not pool.is_walkable:
            return
        numbers = [int(one) for one in self.tunnels]
        ranks = [self.ranks[number] for number in numbers]
        octets = [number & 0xFF for number in numbers]
        yield self._best(modulo.NAME, [self._offset(keys) for keys in (numbers, octets, ranks)])
        yield self._best(crc32.NAME, [self._fixed(said) for said in self._crc32()])
        ordered = [self._fixed([rank * pool.size // everyone for rank in ranks])]
        ordered += [self._between(numbers, reach) for reach in (0, 1)]
        yield self._best(linear.NAME, ordered)

    def _best(self, name: str, forms: Sequence[_Form]) -> Fit:
        """The form that explains most, all of them counted as tried."""
        best = min(forms, key=lambda one: (one.log_p, -one.hit))
        return Fit(
            name,
            self.pool.origin,
            self.pool.size,
            best.tried,
            best.hit,
            best.chance,
            sum(one.hypotheses for one in forms),
            hits=tuple(self.persons[row] for row in best.rows),
        )

    def _persistent(self) -> Said:
        pool = self.pool
        if isinstance(pool.first, IPv4Address):  # one word: no need to build addresses
            return [reciprocal_scale(self.hashes[one], pool.size) for one in self.tunnels]
        said = (position(self.hashes[one], pool.first, pool.last) for one in self.tunnels)
        return [int(one) - int(pool.first) for one in said]

    def _said(
        self, predict: Callable[[Sequence[Address], ExitPool], Sequence[Address | None] | None]
    ) -> Said | None:
        said = predict(self.tunnels, self.pool)
        if said is None:
            return None
        return [None if exit_ is None else self.pool.index(int(exit_)) for exit_ in said]

    def _crc32(self) -> Iterator[Said]:
        """Of the address as bytes and as text, as a remainder and as a fraction."""
        size = self.pool.size
        for hashed in (
            [crc32_of(one.packed) for one in self.tunnels],
            [crc32_of(str(one).encode()) for one in self.tunnels],
        ):
            yield [value % size for value in hashed]
            if size <= _WORD:
                yield [reciprocal_scale(value, size) for value in hashed]

    def _fixed(self, said: Said) -> _Form:
        """A function without anything free."""
        rows = [row for row, one in enumerate(said) if one is not None]
        foretold = Counter(said[row] for row in rows)
        taken = Counter(self.positions[row] for row in rows)
        hits = [row for row in rows if said[row] == self.positions[row]]
        met = sum(count * taken.get(place, 0) for place, count in foretold.items() if place is not None)
        return _Form(len(rows), len(hits), self._dealt(met - len(hits), len(rows)), 1, hits)

    def _offset(self, keys: Sequence[int]) -> _Form:
        """(key + c) mod N, with the commonest c."""
        size = self.pool.size
        steps = Counter((at - key) % size for at, key in zip(self.positions, keys, strict=True))
        step = max(steps, key=lambda one: (steps[one], -one))
        form = self._fixed([(key + step) % size for key in keys])
        return _Form(form.tried, form.hit, form.chance, size, form.rows)

    def _between(self, numbers: Sequence[int], reach: int) -> _Form:
        """A monotone function of the address: between those of its neighbours, up to `reach` positions.

        Every second person is tried, on what the two beside it say; given those the trials are independent,
        whatever the function is, however empty the network.
        """
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        if len(order) < _NEIGHBOURS:
            return _Form(0, 0, 1.0, 1, [])
        taken = sorted(self.positions)
        tried, hit, chance, rows = 0, 0, 0.0, []
        for place in range(1, len(order) - 1):
            before, row, after = order[place - 1 : place + 2]
            span = numbers[after] - numbers[before]
            low, high = self.positions[before], self.positions[after]
            near = low + ((high - low) * (numbers[row] - numbers[before]) * 2 + span) // (2 * span)
            named = abs(self.positions[row] - near) <= reach
            if named:
                rows.append(row)
            if place % 2:
                met = bisect_right(taken, near + reach) - bisect_left(taken, near - reach) - named
                tried, hit = tried + 1, hit + named
                chance += max(met / (len(taken) - 1), min((2 * reach + 1) / self.pool.size, 1.0))
        return _Form(tried, hit, min(chance / tried, 1.0), 1, sorted(rows))

    def _dealt(self, met: float, tried: int) -> float:
        """Chance of a hit: what the predictions would hit, were they dealt to other persons; at least 1/N."""
        even = 1 / self.pool.size
        pairs = tried * (tried - 1)
        dealt = met / pairs if pairs else even
        return min(max((tried * dealt + _PRIOR_PERSONS * even) / (tried + _PRIOR_PERSONS), even), 1.0)


@dataclass(frozen=True, slots=True)
class _Form:
    """One form of a predictor; `rows` are those of `_Trial` that it names."""

    tried: int
    hit: int
    chance: float
    hypotheses: int
    rows: list[int]

    @property
    def log_p(self) -> float:
        return min(log_binomial_tail(self.tried, self.hit, self.chance) + math.log(self.hypotheses), 0.0)
