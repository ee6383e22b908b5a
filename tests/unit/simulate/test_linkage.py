# SPDX-License-Identifier: Apache-2.0
"""The figures of the golden case, and cells against plain enumeration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.base.errors import UsageError
from detector.predictors.kernel_hash import reciprocal_scale
from detector.simulate.cells import HASHES, Cells, breakpoints
from detector.simulate.linkage import After, linkage
from detector.simulate.mappings import MAPPINGS, find

GOLDEN = (60, 11, 8, 31, 66, 91, 59, 13, 11)
KEYS = 3650
few = settings(max_examples=50, deadline=None)
small = st.lists(st.integers(1, 12), min_size=1, max_size=4)


def last(mapping: str, pools: Sequence[int], users: int = KEYS) -> After:
    """After all relays."""
    return linkage(find(mapping), pools, users).after[-1]


def test_the_golden_case() -> None:
    """Nine pools and 3,650 keys: 302 cells, 291.6 distinct tuples, 7.86 bits; 284 were published."""
    found = last("kernel_persistent", GOLDEN)
    assert found.combinations == 8_294_094_768_960
    assert found.cells == 302
    assert found.distinct == pytest.approx(291.6, abs=0.06)
    assert found.deviation == pytest.approx(2.8, abs=0.15)
    assert abs(284 - found.distinct) < 3 * found.deviation
    assert found.bits == pytest.approx(7.86, abs=0.005)


@pytest.mark.parametrize(
    ("pools", "bits"),
    [((60, 91), 5.19), ((60, 11), 3.24), ((60, 91, 66), 10.74), ((64, 64), 6.00), (GOLDEN, 34.68)],
)
def test_golden_excess_bits(pools: tuple[int, ...], bits: float) -> None:
    """What exits on some relays say about the others, for sets of pools."""
    assert last("kernel_persistent", pools).excess_bits == pytest.approx(bits, abs=0.005)


def test_the_deviation_is_that_of_drawing() -> None:
    """The spread of the golden case equals the exact variance of the number of cells that draws fall in."""
    points = sorted({point for pool in GOLDEN for point in breakpoints(pool)})
    share = np.diff([0, *points, HASHES]) / HASHES
    missed = (1 - share) ** KEYS
    both = np.clip(1 - share[:, None] - share, 0, 1) ** KEYS - missed[:, None] * missed
    np.fill_diagonal(both, 0)
    exact = math.sqrt((missed * (1 - missed)).sum() + both.sum())
    assert last("kernel_persistent", GOLDEN).deviation == pytest.approx(exact, rel=0.001)


@few
@given(st.integers(1, 5000), st.data())
def test_breakpoints_are_the_kernels(pool: int, data: st.DataObject) -> None:
    """Each breakpoint is the first 32-bit hash that the kernel brings to the next exit."""
    points = list(breakpoints(pool))
    assert len(points) == pool - 1
    if points:
        exit_ = data.draw(st.integers(1, pool - 1))
        assert reciprocal_scale(points[exit_ - 1], pool) == exit_
        assert reciprocal_scale(points[exit_ - 1] - 1, pool) == exit_ - 1


@few
@given(small)
def test_cells_are_those_of_fractions(pools: list[int]) -> None:
    """The cells are the pieces between all k/N, and their weights those pieces, to one part in 2^32."""
    marks = sorted({Fraction(k, pool) for pool in pools for k in range(pool)} | {Fraction(1)})
    pieces = sorted(high - low for low, high in pairwise(marks))
    *_, (cells, _) = MAPPINGS["kernel_persistent"].steps(pools, 1)
    widths = sorted(Counter(cells.counts).elements())
    assert len(widths) == len(pieces)
    assert all(
        abs(Fraction(w, HASHES) - p) < Fraction(1, HASHES) for w, p in zip(widths, pieces, strict=True)
    )


def enumerated(tuples: Sequence[tuple[int, ...]]) -> tuple[Cells, float]:
    """Cells and the chance to name the last exit, from the tuple of each of some equally probable users."""
    before: dict[tuple[int, ...], Counter[int]] = {}
    for one in tuples:
        before.setdefault(one[:-1], Counter())[one[-1]] += 1
    guess = sum(exits.most_common(1)[0][1] for exits in before.values()) / len(tuples)
    return Cells(Counter(Counter(tuples).values()), len(tuples)), guess


@few
@given(small, st.integers(1, 300))
def test_ranks_are_those_of_the_predictor(pools: list[int], users: int) -> None:
    """`linear`: every user's tuple taken one by one gives the same cells and the same guess."""
    ranks = [tuple(rank * pool // users if users > pool else rank for pool in pools) for rank in range(users)]
    cells, guess = enumerated(ranks)
    found = last("linear", pools, users)
    assert (found.cells, found.distinct, found.deviation) == (cells.number, cells.number, 0)
    assert found.bits == pytest.approx(cells.bits)
    assert found.guess == pytest.approx(guess)
    assert found.same_tuple == pytest.approx(cells.collision)


@few
@given(small)
def test_remainders_are_those_of_addresses(pools: list[int]) -> None:
    """`modulo`: addresses one by one over a whole period give the same cells and the same guess."""
    cells, guess = enumerated(
        [tuple(address % pool for pool in pools) for address in range(math.lcm(*pools))]
    )
    found = last("modulo", pools)
    assert found.cells == cells.number
    assert found.bits == pytest.approx(cells.bits)
    assert found.guess == pytest.approx(guess)


@few
@given(st.lists(st.integers(1, 200), min_size=1, max_size=6), st.integers(1, 100_000))
def test_what_holds_for_every_mapping(pools: list[int], users: int) -> None:
    """Figures stay in their bounds, and grow with each relay where they must."""
    for name in set(MAPPINGS) - {"netmap"}:
        after = linkage(MAPPINGS[name], pools, users).after
        assert [one.pool for one in after] == pools
        for one in after:
            assert 1 <= one.cells <= one.combinations
            assert -1e-9 <= one.bits <= math.log2(one.cells) + 1e-9
            assert 0 < one.distinct <= min(one.cells, users if name != "random" else 1) * (1 + 1e-9)
            assert one.blind * (1 - 1e-6) <= one.guess <= 1
            assert 0 < one.same_tuple <= 1 + 1e-9
        for before, one in pairwise(after):
            assert before.cells <= one.cells
            assert before.excess_bits <= one.excess_bits + 1e-9


def test_secrets_and_draws_link_nothing() -> None:
    """A secret of each relay leaves no excess bits; per-flow draws leave no tuple at all."""
    secret, random = last("secret", GOLDEN), last("random", GOLDEN)
    assert secret.excess_bits == random.excess_bits == 0
    assert secret.guess == random.guess == pytest.approx(1 / 11)
    assert secret.cells == secret.combinations
    assert (random.cells, random.bits, random.same_tuple) == (1, 0, 1)


def test_host_bits_are_the_same_in_every_prefix() -> None:
    """Netmap over /26, /28 and /26: one address of 64, and the last exit follows from the first."""
    found = last("netmap", (64, 16, 64))
    assert (found.cells, found.guess, found.excess_bits) == (64, 1, 10)


@pytest.mark.parametrize(
    ("mapping", "pools", "users"),
    [
        ("kernel_persistent", (0, 5), 10),
        ("kernel_persistent", (), 10),
        ("kernel_persistent", (2**33,), 10),
        ("kernel_persistent", (2**31,), 10),
        ("kernel_persistent", (60,), 0),
        ("netmap", (60,), 10),
        ("nothing", (60,), 10),
    ],
)
def test_nonsense_is_refused(mapping: str, pools: tuple[int, ...], users: int) -> None:
    """What cannot be is a user's error with a hint."""
    with pytest.raises(UsageError) as caught:
        last(mapping, pools, users)
    assert caught.value.hint
