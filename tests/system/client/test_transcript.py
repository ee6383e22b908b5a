# SPDX-License-Identifier: Apache-2.0
"""The way from a page to the proof of the fix can be gone with the commands that alert and runbook name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.system.client.transcript import page

FACTOR = 200.0
MILESTONES = [
    "[FIRING] ExitprintMappingPredictable",
    "Leaking: anybody can compute which exit address a peer gets",
    "The relay is predictable by kernel_persistent since ",
    "→ predictable by kernel_persistent",
    "rule at fault: ip",
    "LEAKS  ip exits postrouting",
    "write instead, in the place of that rule:",
    "peer-",
    "names its busiest exit",
    "nft -c -f remedy.nft && nft -f remedy.nft",
    "2 source-NAT rules: 2 warning.",
    "The relay is pinned",
    "epoch 3: same rules since",
    "[RESOLVED] ExitprintMappingPredictable",
]


def in_order(text: str) -> list[str]:
    """The milestones that come one after the other."""
    found, at = [], 0
    for part in MILESTONES:
        if (at := text.find(part, at)) < 0:
            break
        found.append(part)
    return found


@pytest.mark.root
@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root")
@pytest.mark.skipif(not shutil.which("prometheus-alertmanager"), reason="NO prometheus-alertmanager here")
def test_the_fix_is_found_and_proven() -> None:
    """Played anew on a lab's relay, every step comes, and in this order."""
    assert in_order(page(FACTOR)) == MILESTONES


def test_the_page_in_docs_is_such_a_play() -> None:
    """What is written down has the same steps."""
    assert in_order((Path(__file__).parents[3] / "docs" / "transcript.md").read_text()) == MILESTONES
