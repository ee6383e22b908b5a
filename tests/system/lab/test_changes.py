# SPDX-License-Identifier: Apache-2.0
"""The service on a lab's relay says what each change of the rules did to the mapping."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from detector.analysis.changes import Change, Outcome
from detector.base.family import Family
from detector.base.ranges import AddressRange
from detector.lab.layout import DEFAULT_POOLS
from detector.lab.mappings import find
from detector.lab.relay import Lab
from detector.publish.snapshot import status
from tests.system.service.stepping import Stepped, allow, stepped

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

PEERS, FLOWS = 16, 384


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One relay for all changes."""
    with Lab(peers=PEERS) as relay:
        yield relay


@pytest.fixture
def both(lab: Lab) -> Iterator[Stepped]:
    """The service on a relay with a mapping that is drawn when the rules are loaded."""
    lab.apply("jhash")
    with stepped(lab) as running:
        use(lab, running)
        yield running


def use(lab: Lab, both: Stepped) -> None:
    """Traffic that tells every peer's exit, and a report on it."""
    lab.forget()
    both.step()
    lab.send(lab.workload(FLOWS))
    both.step()


def changed(lab: Lab, both: Stepped, mapping: str, pools: tuple[AddressRange, ...] = DEFAULT_POOLS) -> Change:
    """What loading these rules did, and that it did the same in both families."""
    epoch = both.aggregator.snapshot.epoch
    lab.apply_text(find(mapping).ruleset(pools, lab.exit_interface))
    use(lab, both)
    assert both.aggregator.snapshot.epoch == epoch + 1
    change = both.aggregator.snapshot.change
    assert change[Family.IPV4].outcome is change[Family.IPV6].outcome
    return change[Family.IPV4]


def moved(step: int) -> tuple[AddressRange, ...]:
    """The lab's pools, begun so many addresses later."""
    return tuple(AddressRange(pool.first + step, pool.last + step) for pool in DEFAULT_POOLS)


def test_each_change_of_the_rules_is_told(lab: Lab, both: Stepped) -> None:
    """A reload draws anew, a flag keeps, a pool that moves shifts, and random exits end the mapping."""
    before = both.aggregator.snapshot
    assert before.change == {}
    again = changed(lab, both, "jhash")
    assert (again.outcome, again.peers, again.since) == (Outcome.REDRAWN, PEERS, before.epoch)
    assert changed(lab, both, "persistent").outcome is Outcome.REDRAWN
    later = changed(lab, both, "persistent", moved(5))
    assert (later.outcome, later.step, later.moved) == (Outcome.SHIFTED, 5, 1.0)
    assert changed(lab, both, "numgen-random").outcome is Outcome.ENDED
    assert changed(lab, both, "numgen-inc").outcome is Outcome.NONE
    assert changed(lab, both, "netmap").outcome is Outcome.BEGUN


def test_rules_that_read_otherwise_can_keep_the_mapping(lab: Lab, both: Stepped) -> None:
    """`persistent` with random ports is another rule and the same mapping; the status says so."""
    changed(lab, both, "persistent")
    text = find("persistent").ruleset(DEFAULT_POOLS, lab.exit_interface)
    lab.apply_text(text.replace("persistent", "random,persistent"))
    use(lab, both)
    assert both.aggregator.snapshot.change[Family.IPV6].outcome is Outcome.KEPT
    said = status(both.aggregator.snapshot, both.aggregator.about)
    change = said["epoch"]["change"]["ipv4"]  # type: ignore[index]
    assert (change["outcome"], change["same"]) == ("kept", 1.0)
    assert not any(secret in str(said) for secret in lab.secrets())


def test_a_peer_that_came_back_is_compared(lab: Lab, both: Stepped) -> None:
    """A person is its tunnel address over all its stays: what it had before it left counts."""
    gone = lab.peers[0]
    lab.apply("jhash")
    both.step()
    allow(lab, lab.wireguard_interface, gone.public_key)
    both.step()
    allow(lab, lab.wireguard_interface, gone.public_key, *gone.allowed_ips())
    use(lab, both)
    change = both.aggregator.snapshot.change[Family.IPV4]
    assert (change.outcome, change.peers) == (Outcome.REDRAWN, PEERS)
