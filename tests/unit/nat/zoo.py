# SPDX-License-Identifier: Apache-2.0
"""The zoo of rules, each by itself: in one chain most of them stand behind others that take everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from detector.nat.iptables import read_iptables_save
from detector.nat.model import RuleSet, rule_set
from detector.nat.nftables import read_nft_json

FIXTURES = Path(__file__).parent / "fixtures"
NFT = (FIXTURES / "zoo.json").read_text()
SAVE = (FIXTURES / "zoo.iptables-nft").read_text()


def alone() -> RuleSet:
    """Every rule of the nft zoo's base chains, each as if it were the only one."""
    return joined(map(read_nft_json, listings()))


def saved_alone() -> RuleSet:
    """Every rule of the iptables zoo's POSTROUTING, each as if it were the only one."""
    return joined(map(read_iptables_save, saves()))


def listings() -> Iterator[str]:
    """The nft zoo, with one rule in its base chains each time."""
    objects = json.loads(NFT)["nftables"]
    based = [one for one in objects if "rule" in one and one["rule"]["chain"] == "post"]
    for kept in based:
        yield json.dumps({"nftables": [one for one in objects if one is kept or one not in based]})


def saves() -> Iterator[str]:
    """The iptables zoo, with one rule in POSTROUTING each time."""
    lines = SAVE.splitlines()
    for kept, line in enumerate(lines):
        if line.startswith("-A POSTROUTING"):
            yield "\n".join(
                one for at, one in enumerate(lines) if at == kept or not one.startswith("-A POSTROUTING")
            )


def joined(read: Iterator[RuleSet]) -> RuleSet:
    """One rule set of several."""
    sets = list(read)
    return rule_set(
        [rule for one in sets for rule in one.rules], [rule for one in sets for rule in one.not_understood]
    )
