# SPDX-License-Identifier: Apache-2.0
"""Exit pools where nobody says what they are: the ranges that the exits in use make.

Two steps. `guessed_ranges` looks at the exits alone: neighbours are of one pool unless a gap between them is
wider than exits drawn from a full range would leave. `hashed_ranges` looks at the exits beside the kernel's
hash of what chose them: exits of a range A..B are A + (hash * (B - A + 1) >> 32), so the right ends make many
of them agree, and pools that touch, strays and ends that nobody happened to get are told apart. It finds
nothing unless the agreement is beyond all the ends that were tried, so a guess makes no leak of its own.

NumPy-free: the sensor, which alone knows tunnel addresses, may call it as a listing does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from detector.base.family import Address
from detector.base.ranges import AddressRange
from detector.predictors.kernel_hash import source_hash
from detector.predictors.pool import ExitPool
from detector.predictors.tails import log_binomial_tail

GUESS = "a guess from the exits"
"""Where a pool is from that nobody told."""

_LEAST_SHARE = 0.25  # of a guessed range that is in use
_ODDS = 5.0  # a gap is of the pool unless it is wider than e^-5 of samples would leave
_WIDEST_RANGE = 4096  # for the ends that are tried with the hash
_POINTS = 384  # exits that are tried with it
_MOST_RANGES = 8
_LOG_SURE = math.log(1e-6)
_LEAST_HITS = 4
_PRIOR = 4.0  # points for which even chance counts, beside what dealing gives
_WORD_BITS = 32
_SAME_WORDS = 1 << 32

Point = tuple[int, Address]
"""The kernel's hash, 32 bits, and the exit that was chosen."""


def guessed_ranges(exits: Iterable[Address]) -> list[AddressRange]:
    """The ranges that exits make.

    Args:
        exits: those in use, of one family or both, in any order.
    """
    by_version: dict[int, list[Address]] = {}
    for address in set(exits):
        by_version.setdefault(address.version, []).append(address)
    found: list[AddressRange] = []
    for version in sorted(by_version):
        for run in _runs(sorted(by_version[version], key=int)):
            span = int(run[-1]) - int(run[0]) + 1
            if len(run) > 1 and len(run) >= _LEAST_SHARE * span:
                found.append(AddressRange(run[0], run[-1]))
    return found


def _runs(exits: Sequence[Address]) -> Iterator[Sequence[Address]]:
    """Exits in ascending order, parted at gaps that are too wide for their neighbours on either side."""
    waiting = [exits]
    while waiting:
        run = waiting.pop()
        gaps = [int(after) - int(before) for before, after in pairwise(run)]
        if not gaps:
            yield run
            continue
        at = max(range(len(gaps)), key=gaps.__getitem__)
        # Both ends of the other gaps: what is left on either side has to be dense for the gap to be one.
        others = sum(gaps) - gaps[at]
        usual = max(others / max(len(gaps) - 1, 1), 1.0)
        if gaps[at] > usual * (math.log(len(run)) + _ODDS):
            waiting += [run[at + 1 :], run[: at + 1]]
        else:
            yield run


def hashed_ranges(points: Iterable[Point]) -> list[AddressRange]:
    """The ranges from which the kernel's own hash chose exits, where it did.

    Args:
        points: of one family: hashes of different flows (or of different tunnel addresses) with their exits.
        The
            first few hundred are looked at.
    """
    distinct = list(dict.fromkeys(points))
    left = distinct[:: -(-len(distinct) // _POINTS) or 1]
    found: list[AddressRange] = []
    while len(left) >= _LEAST_HITS and len(found) < _MOST_RANGES:
        best = _best(left)
        if best is None:
            break
        found.append(best)
        left = [point for point in left if not _is_hit(point, best)]
    return _unmixed(found)


def _best(points: Sequence[Point]) -> AddressRange | None:
    """The ends that explain most, if that is beyond chance."""
    best: tuple[float, AddressRange | None] = (0.0, None)
    for group in _groups(points):
        numbers = [(hashed, int(exit_)) for hashed, exit_ in group]
        taken = Counter(number for _, number in numbers)
        if len(taken) < 2:
            continue
        low, high = min(taken), max(taken)
        widest = min(2 * (high - low) + 4, _WIDEST_RANGE)
        for size in range(2, widest + 1):
            offsets = Counter(number - (hashed * size >> _WORD_BITS) for hashed, number in numbers)
            for first, hits in offsets.most_common(2):
                if hits < _LEAST_HITS:
                    continue
                log_p = _log_p(numbers, taken, first, size, hits) + math.log(widest * (high - low + size))
                if log_p < min(best[0], _LOG_SURE) and first >= 0:
                    make = type(group[0][1])
                    best = log_p, AddressRange(make(first), make(first + size - 1))
    return best[1]


def _log_p(
    numbers: Sequence[tuple[int, int]], taken: Counter[int], first: int, size: int, hits: int
) -> float:
    """Bound on the log-probability of so many hits among the exits within, were the hash not theirs."""
    inside = [(hashed, number) for hashed, number in numbers if first <= number < first + size]
    foretold = Counter(first + (hashed * size >> _WORD_BITS) for hashed, _ in inside)
    # What the predictions would hit, were they dealt to others: exits need not be even.
    met = sum(count * taken[number] for number, count in foretold.items()) - hits
    n = len(inside)
    dealt = met / (n * (n - 1)) if n > 1 else 1 / size
    dealt = (n * dealt + _PRIOR / size) / (n + _PRIOR)
    return log_binomial_tail(n, hits, min(max(dealt, 1 / size), 1.0))


def _groups(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Points whose exits are near enough to be of one range, and differ in the last word alone."""
    ordered = sorted(points, key=lambda point: int(point[1]))
    group: list[Point] = []
    for point in ordered:
        if group and (
            int(point[1]) - int(group[-1][1]) > _WIDEST_RANGE // 4
            or int(point[1]) // _SAME_WORDS != int(group[0][1]) // _SAME_WORDS
        ):
            yield group
            group = []
        group.append(point)
    if group:
        yield group


def _is_hit(point: Point, chosen: AddressRange) -> bool:
    return int(point[1]) == int(chosen.first) + (point[0] * chosen.size >> _WORD_BITS)


def _unmixed(found: Sequence[AddressRange]) -> list[AddressRange]:
    """Without ranges that lie over a better one: those are its own hits under another name."""
    kept: list[AddressRange] = []
    for one in found:
        if not any(one.overlaps(better) for better in kept):
            kept.append(one)
    return sorted(kept, key=lambda one: int(one.first))


def guessed_choices(tunnels: Sequence[Address], exits: Sequence[Address]) -> list[ExitPool]:
    """What the rules may choose from, for predictors to be tried on.

    Args:
        tunnels: tunnel addresses of one family.
        exits: the busiest exit of each.
    """
    points = ((source_hash(tunnel), exit_) for tunnel, exit_ in zip(tunnels, exits, strict=True))
    found = joined(hashed_ranges(points), guessed_ranges(exits))
    return [ExitPool(one.first, one.last, origin=GUESS) for one in found]


def joined(hashed: Sequence[AddressRange], guessed: Sequence[AddressRange]) -> list[AddressRange]:
    """Ranges found by the hash, and the guessed ones that do not lie over one of them."""
    rest = [one for one in guessed if not any(one.overlaps(sure) for sure in hashed)]
    return sorted([*hashed, *rest], key=lambda one: (one.first.version, int(one.first)))
