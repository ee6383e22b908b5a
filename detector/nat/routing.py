# SPDX-License-Identifier: Apache-2.0
"""What decides on exits beside the NAT rules: the routes that choose the uplink, and its own address.

An edge: it asks iproute2. A relay with one uplink and exits that the rules name needs none of it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

from detector.nat.bounded import run_bounded
from detector.nat.model import Masquerade, RuleSet, digest

TIMEOUT = 3.0
"""Seconds that each question may take."""

MAX_OUTPUT = 4 << 20
"""Bytes of an answer; the default routes of all tables are a few hundred."""

_SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_FLEETING = frozenset(
    {"valid_life_time", "preferred_life_time", "flags", "protocol", "expires", "pref", "dynamic"}
)


def routing_identity(rules: RuleSet) -> str:
    """Changes with `ip rule`, next hops and addresses that the choice of these rules hangs on.

    An empty string where it hangs on none of them (no rule masquerades, and all ask for the same uplink), and
    where iproute2 does not answer.
    """
    masquerades = any(isinstance(rule.mapping, Masquerade) for rule in rules.rules)
    uplinks = {
        one.values for rule in rules.rules for one in rule.matches if one.subject in {"oif", "oifname"}
    }
    if not masquerades and len(uplinks) < 2:
        return ""
    ways: list[Any] = []
    for family in ("-4", "-6"):
        policies = _plain(_asked(family, "rule"))
        defaults = _plain(_asked(family, "route", "show", "table", "all", "default"))
        ways += [policies, sorted(defaults, key=repr)]
    links = set(_links(ways))
    addresses = _asked("address", "show") if masquerades else []
    ways.append(sorted(_addresses(addresses, links)))
    return digest(ways)


def _asked(*question: str) -> list[Any]:
    """What `ip -j` lists; nothing where it fails."""
    tool = shutil.which("ip", path=_SEARCH)
    if tool is None:
        return []
    try:
        done = run_bounded([tool, "-j", *question], timeout=TIMEOUT, most=MAX_OUTPUT)
        listed = json.loads(done.stdout) if done.status == 0 and done.stdout.strip() else []
    except (OSError, OverflowError, ValueError):
        return []
    return listed if isinstance(listed, list) else []


def _plain(listed: list[Any]) -> list[Any]:
    """The same without what changes by itself."""
    return [
        sorted((key, repr(value)) for key, value in one.items() if key not in _FLEETING)
        for one in listed
        if isinstance(one, dict)
    ]


def _links(ways: list[Any]) -> Iterator[str]:
    """The interfaces that default routes lead to, those of several hops as they are written there."""
    for key, value in (pair for listed in ways for one in listed for pair in one):
        if key in {"dev", "nexthops"}:
            yield value.strip("'")


def _addresses(listed: list[Any], links: set[str]) -> Iterator[tuple[str, str]]:
    """The addresses of these interfaces that other hosts see."""
    for one in listed:
        name = str(one.get("ifname", "")) if isinstance(one, dict) else ""
        if any(name == link or f"'{name}'" in link for link in links):
            for address in one.get("addr_info", ()):
                if address.get("scope") == "global":
                    yield name, str(address.get("local"))
