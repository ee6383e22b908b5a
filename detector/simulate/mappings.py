# SPDX-License-Identifier: Apache-2.0
"""What each mapping makes of a user over several relays: which tuples of exits there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from detector import predictors
from detector.base.errors import UsageError
from detector.simulate.cells import HASHES, Cells, breakpoints, cut, guessed

MAX_EXITS = 1 << 20
"""Of all pools together, where cells have to be cut one by one."""
MAX_USERS = HASHES

Step = tuple[Cells, float]
"""The cells over the relays so far, and the chance to name the last one's exit from those before."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """A way to choose exits on every relay.

    Attributes:
        name: as the report calls the predictor, or `secret` or `random`.
        meaning: for people.
        caveat: what limits it, or an empty string.
        sticky: a user keeps its exit on a relay.
        steps: pool sizes and the number of users to one step a relay.
    """

    name: str
    meaning: str
    steps: Callable[[Sequence[int], int], Iterator[Step]]
    caveat: str = ""
    sticky: bool = True


def _shared_hash(pools: Sequence[int], _users: int) -> Iterator[Step]:
    return _shared_fraction(pools, HASHES, dealt=False)


def _shared_rank(pools: Sequence[int], users: int) -> Iterator[Step]:
    return _shared_fraction(pools, users, dealt=True)


def _shared_fraction(pools: Sequence[int], total: int, *, dealt: bool) -> Iterator[Step]:
    """One value of 0..total-1 is scaled to every pool."""
    if sum(pools) > MAX_EXITS:
        raise UsageError(
            f"the pools have {sum(pools):,} exits together", f"give at most {MAX_EXITS:,} for this mapping"
        )
    points: list[int] = []
    for pool in pools:
        more = sorted({point for point in breakpoints(pool, total) if point < total})
        guess = guessed(points, more, total)
        points = sorted({*points, *more})
        yield cut(points, total, dealt=dealt), guess


def _remainder(pools: Sequence[int], _users: int) -> Iterator[Step]:
    """The tunnel address modulo each pool: the tuple is the address modulo their least common multiple."""
    period = 1
    for pool in pools:
        yield Cells.even(math.lcm(period, pool)), math.gcd(period, pool) / pool
        period = math.lcm(period, pool)


def _host_bits(pools: Sequence[int], users: int) -> Iterator[Step]:
    for pool in pools:
        if pool & (pool - 1):
            raise UsageError(
                f"netmap needs prefixes, and {pool} addresses are none",
                f"take {1 << pool.bit_length()} or {1 << (pool.bit_length() - 1)}",
            )
    return _remainder(pools, users)


def _independent(pools: Sequence[int], _users: int) -> Iterator[Step]:
    """Every relay draws for itself, once for each user."""
    together = 1
    for pool in pools:
        together *= pool
        yield Cells.even(together), 1 / pool


def _fresh(pools: Sequence[int], _users: int) -> Iterator[Step]:
    """Every flow is drawn anew: there is no tuple of a user, so all users look the same."""
    return ((Cells.even(1), 1 / pool) for pool in pools)


_SITE = "only where the same site sees the user on every relay"
_SEED = "where every relay has the same seed; with a seed of its own each is `secret`"
_EVEN = "tunnel addresses are taken to be spread evenly"
_EVERYBODY = "every relay is taken to have all the keys as its peers"

_STEPS: dict[str, tuple[Callable[[Sequence[int], int], Iterator[Step]], str]] = {
    "kernel_persistent": (_shared_hash, ""),
    "kernel_destination": (_shared_hash, _SITE),
    "seeded_jhash": (_shared_hash, _SEED),
    "netmap": (_host_bits, _EVEN),
    "modulo": (_remainder, _EVEN),
    "crc32": (_remainder, "hashes are taken to be spread evenly"),
    "linear": (_shared_rank, _EVERYBODY),
}

MAPPINGS = {
    **{name: Mapping(name, predictors.meaning(name), *_STEPS[name]) for name in predictors.NAMES},
    "secret": Mapping(
        "secret",
        "a secret of each relay and the tunnel address (jhash without a seed)",
        _independent,
        "who learns that some exits are one user's, say from a login, knows that user again on those relays",
    ),
    "random": Mapping("random", "a new draw for each flow", _fresh, sticky=False),
}


def find(name: str) -> Mapping:
    """The mapping of this name.

    Raises:
        UsageError: there is none.
    """
    try:
        return MAPPINGS[name]
    except KeyError:
        raise UsageError(f"no mapping is called {name!r}", f"there are: {', '.join(MAPPINGS)}") from None
