# SPDX-License-Identifier: Apache-2.0
"""What a change of the rules did is told from the exits that peers had before and have now."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import numpy as np
import pytest
from numpy.typing import NDArray

from detector.analysis.changes import Change, Outcome, PrimaryExits, compare, primary_exits
from detector.base.family import Address
from tools.simulated_relays import MAPPINGS, relay, traffic

PEERS = 90
FIRST = IPv4Address("198.18.0.0")


def settled(
    position: NDArray[np.intp], size: int = 59, first: Address = FIRST, judged: int | None = None
) -> PrimaryExits:
    """Peers at these positions of a pool, each sure of its exit."""
    exits = tuple(type(first)(int(first) + at) for at in range(size))
    names = np.arange(len(position))
    return PrimaryExits(1, names, position, exits, ((exits[0], exits[-1]),), judged or len(position))


def drawn(seed: int, peers: int = PEERS, size: int = 59) -> NDArray[np.intp]:
    """A position for each peer."""
    return np.random.default_rng(seed).integers(0, size, peers)


def test_the_same_exits_are_kept() -> None:
    """Every peer at its exit of before: kept, against the chance of exits dealt anew."""
    change = compare(settled(drawn(1)), settled(drawn(1)))
    assert (change.outcome, change.same, change.peers) == (Outcome.KEPT, 1.0, PEERS)
    assert change.same_chance == pytest.approx(1 / 59, abs=0.01)


def test_other_exits_are_redrawn() -> None:
    """Exits that have nothing to do with those of before: drawn anew."""
    change = compare(settled(drawn(1)), settled(drawn(2)))
    assert change.outcome is Outcome.REDRAWN
    assert change.same < 0.1


@pytest.mark.parametrize("step", [1, -7, 20])
@pytest.mark.parametrize("first", [FIRST, IPv6Address("2001:db8::ffff:ffff:ffff:fff0")])
def test_a_pool_that_moves_shifts_everybody(step: int, first: Address) -> None:
    """The same positions in a pool that begins elsewhere: a block, moved by so many addresses."""
    moved = type(first)(int(first) + step)
    change = compare(settled(drawn(1), first=first), settled(drawn(1), first=moved))
    assert (change.outcome, change.step, change.moved) == (Outcome.SHIFTED, step, 1.0)


@pytest.mark.parametrize("step", [3, -4])
def test_positions_that_move_round_the_pool_are_a_block(step: int) -> None:
    """The same pool, every position moved by as much, its end followed by its beginning."""
    change = compare(settled(drawn(1)), settled((drawn(1) + step) % 59))
    assert (change.outcome, change.step, change.moved) == (Outcome.SHIFTED, step, 1.0)


def test_a_larger_pool_keeps_the_relative_position() -> None:
    """The same fraction of a pool of another size, as the kernel's own hash gives it."""
    fraction = np.random.default_rng(1).random(PEERS)
    change = compare(
        settled((fraction * 59).astype(np.intp)),
        settled((fraction * 66).astype(np.intp), 66, FIRST + 1000),
    )
    assert (change.outcome, change.relative) == (Outcome.RESCALED, 1.0)


def test_a_part_that_is_kept_is_mixed() -> None:
    """Half of the peers where they were, the others elsewhere: neither kept nor drawn anew."""
    after = np.where(np.arange(PEERS) % 2, drawn(1), drawn(2))
    change = compare(settled(drawn(1)), settled(after))
    assert change.outcome is Outcome.MIXED
    assert 0.45 < change.same < 0.6


def test_few_peers_say_nothing() -> None:
    """Two peers, or four on a pool of two, could be where they are by chance."""
    assert compare(settled(drawn(1, 2)), settled(drawn(1, 2))).outcome is Outcome.UNKNOWN
    few = drawn(1, 4, 2)
    assert compare(settled(few, 2), settled(1 - few, 2)).outcome is Outcome.UNKNOWN


def test_one_exit_for_everybody_is_nobodys_own() -> None:
    """From an exit each to one for all: the mapping has ended, nobody's exit was kept or drawn."""
    one = settled(np.zeros(PEERS, np.intp))
    assert compare(settled(drawn(1)), one).outcome is Outcome.ENDED
    assert compare(one, settled(drawn(1))).outcome is Outcome.BEGUN


def test_peers_that_left_are_not_compared() -> None:
    """A number that stands for another peer by now is taken out of what was before."""
    before = settled(drawn(1)).without(range(60))
    assert (len(before.peer), before.judged) == (PEERS - 60, PEERS - 60)
    assert compare(before, settled(drawn(1))).peers == PEERS - 60


def made(mapping: str, seed: int, flows: int = 12) -> PrimaryExits:
    """The primary_exits on a simulated relay."""
    rng = np.random.default_rng(seed)
    seen = relay(rng, MAPPINGS[mapping], 59, traffic(rng, PEERS, flows))
    return primary_exits(seen, np.arange(PEERS), ((seen.exits[0], seen.exits[-1]),))


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ("jhash", "jhash", Outcome.REDRAWN),
        ("netmap", "netmap", Outcome.KEPT),
        ("jhash", "random", Outcome.ENDED),
        ("random", "jhash", Outcome.BEGUN),
        ("random", "plain", Outcome.NONE),
        ("jhash", "masquerade", Outcome.ENDED),
    ],
)
def test_simulated_mappings_are_compared(before: str, after: str, outcome: Outcome) -> None:
    """What peers voted is enough to tell a mapping that stays, is drawn anew, begins and ends."""
    assert compare(made(before, 1), made(after, 2)).outcome is outcome


def test_two_votes_are_no_home() -> None:
    """Peers with two votes have no exit of their own, so nothing is said."""
    change = compare(made("jhash", 1, 2), made("jhash", 2))
    assert (change.outcome, change.peers) == (Outcome.UNKNOWN, 0)


def test_every_outcome_has_a_sentence_with_its_numbers() -> None:
    """The JSON object says in a sentence what became of how many peers."""
    changes = [
        compare(settled(drawn(1)), settled(drawn(1))),
        compare(settled(drawn(1)), settled(drawn(2))),
        compare(settled(drawn(1)), settled((drawn(1) + 3) % 59)),
    ]
    said = [_why(change) for change in changes]
    assert said[0].startswith("The change kept the mapping: 100% of 90 peers")
    assert said[1].startswith("The change drew the mapping anew")
    assert said[2].endswith("moved by 3 exits.")


def _why(change: Change) -> str:
    return str(change.as_dict()["why"])
