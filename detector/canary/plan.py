# SPDX-License-Identifier: Apache-2.0
"""What a run measures, from its YAML file: relays, canaries, reflector, and how politely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml

from detector.base.errors import UsageError
from detector.base.family import Address, Family, family_of
from detector.base.ranges import AddressRange, parse_pool
from detector.config.canaries import NAME
from detector.config.kinds import parse_duration


@dataclass(frozen=True, slots=True)
class RelayPlan:
    """One relay.

    Attributes:
        endpoint, public_key: of its WireGuard.
        pools: by family, the exits in their order.
        namespace: the network namespace that its packets leave from, empty for ours.
        metrics: the address of its /metrics, empty where it is not to be asked.
    """

    name: str
    endpoint: str
    public_key: str
    pools: Mapping[Family, AddressRange]
    namespace: str = ""
    metrics: str = ""


@dataclass(frozen=True, slots=True)
class CanaryPlan:
    """One canary: its tunnel addresses, and the file with its private key, as `wg set` takes it."""

    name: str
    key_file: str
    addresses: Mapping[Family, Address]


@dataclass(frozen=True, slots=True)
class Plan:
    """A run.

    Attributes:
        reflector: by family, the addresses of the reflector.
        port: where it listens.
        requests: to each of its addresses, from each canary.
        pause: seconds between a canary and the next on one relay.
        timeout: seconds that an answer may take.
    """

    reflector: Mapping[Family, tuple[Address, ...]]
    port: int
    requests: int
    pause: float
    timeout: float
    relays: tuple[RelayPlan, ...]
    canaries: tuple[CanaryPlan, ...]


class _Reader:
    """Reads keys, and says which one is wrong and what is expected."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def wrong(self, key: str, expected: str) -> UsageError:
        return UsageError(f"{self._path}: {key}: expected {expected}", "docs/fleet.md has an example")

    def group(self, value: object, key: str, known: set[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(key, f"a group of {', '.join(sorted(known))}")
        for name in value:
            if name not in known:
                raise self.wrong(f"{key}.{name}".lstrip("."), f"one of {', '.join(sorted(known))}")
        return value

    def text(self, group: Mapping[str, Any], key: str, name: str, default: str | None = None) -> str:
        value = group.get(name, default)
        if not isinstance(value, str) or (not value and default is None):
            raise self.wrong(f"{key}.{name}".lstrip("."), "a text")
        return value

    def items(self, group: Mapping[str, Any], name: str) -> list[Any]:
        value = group.get(name)
        if not isinstance(value, list) or not value:
            raise self.wrong(name, "a list with at least one entry")
        return value

    def seconds(self, group: Mapping[str, Any], name: str, default: str) -> float:
        try:
            return parse_duration(self.text(group, "", name, default))
        except ValueError:
            raise self.wrong(name, "a duration with its unit, such as 2s") from None

    def number(self, group: Mapping[str, Any], name: str, default: int, most: int) -> int:
        value = group.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.wrong(name, f"a number from 1 to {most}")
        return value

    def addresses(self, value: object, key: str) -> tuple[Address, ...]:
        if not isinstance(value, list) or not value:
            raise self.wrong(key, "a list of addresses")
        try:
            return tuple(ip_address(text) for text in value)
        except ValueError:
            raise self.wrong(key, "a list of IPv4 and IPv6 addresses") from None


def read_plan(path: Path) -> Plan:
    """The plan in a YAML file.

    Raises:
        UsageError: it cannot be read, or something in it is wrong.
    """
    reader = _Reader(path)
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UsageError(f"{path}: not YAML", "docs/fleet.md has an example") from None
    whole = reader.group(
        value, "", {"reflector", "port", "requests", "pause", "timeout", "relays", "canaries"}
    )
    reflector: dict[Family, tuple[Address, ...]] = {}
    for address in reader.addresses(whole.get("reflector"), "reflector"):
        reflector[family_of(address)] = (*reflector.get(family_of(address), ()), address)
    return Plan(
        reflector,
        reader.number(whole, "port", 8080, 65_535),
        reader.number(whole, "requests", 2, 20),
        reader.seconds(whole, "pause", "1s"),
        reader.seconds(whole, "timeout", "5s"),
        tuple(_relay(reader, one, f"relays[{at}]") for at, one in enumerate(reader.items(whole, "relays"))),
        tuple(
            _canary(reader, one, f"canaries[{at}]") for at, one in enumerate(reader.items(whole, "canaries"))
        ),
    )


def _relay(reader: _Reader, value: object, key: str) -> RelayPlan:
    known = {"name", "endpoint", "public_key", "pools", "namespace", "metrics"}
    group = reader.group(value, key, known)
    pools: dict[Family, AddressRange] = {}
    for text in group.get("pools") or ():
        try:
            pool = parse_pool(str(text))
        except UsageError as error:
            raise reader.wrong(f"{key}.pools", f"addresses, ranges or prefixes ({error.what})") from None
        pools[pool.family] = pool
    if not pools:
        raise reader.wrong(f"{key}.pools", "a range of exits for each family")
    return RelayPlan(
        reader.text(group, key, "name"),
        reader.text(group, key, "endpoint"),
        reader.text(group, key, "public_key"),
        pools,
        reader.text(group, key, "namespace", ""),
        reader.text(group, key, "metrics", ""),
    )


def _canary(reader: _Reader, value: object, key: str) -> CanaryPlan:
    group = reader.group(value, key, {"name", "private_key_file", "addresses"})
    name = reader.text(group, key, "name")
    if not NAME.fullmatch(name):
        raise reader.wrong(f"{key}.name", "1 to 32 of a to z, 0 to 9 and -")
    addresses = reader.addresses(group.get("addresses"), f"{key}.addresses")
    return CanaryPlan(
        name, reader.text(group, key, "private_key_file"), {family_of(one): one for one in addresses}
    )
