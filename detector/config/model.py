# SPDX-License-Identifier: Apache-2.0
"""The service's configuration as every process holds it.

It is read from YAML by `detector.config.file` and goes to the child processes as JSON, so that they
import neither the validator nor the YAML parser.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from detector.base.log_options import LogFormat, LogLevel
from detector.config.canaries import Canaries

Hook = Literal["auto", "netfilter", "kprobe"]

NAMESPACES = Path("/run/netns")
INSPECT_SOCKET = "/run/exitprint/inspect.sock"


@dataclass(frozen=True, slots=True)
class Listen:
    """Where /metrics is served; port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 9973

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tables:
    """How many entries each table holds.

    Attributes:
        peers: tunnel addresses (slots).
        pairs: pairs of slot and exit address in one interval, if no two share a block; a block has room for
            six exits of a slot, and those with votes take another.
        exits: exit addresses.
        destinations, ports: the memories behind the contrasts, powers of two.
        panes: parts that the sliding window moves by.
        measured: flows of a tunnel address whose contrasts are measured in one window; the others are counted
            only. The memories need room for twice this for each address that is busy.
    """

    peers: int = 65_536
    pairs: int = 131_072
    exits: int = 65_536
    destinations: int = 1_048_576
    ports: int = 1_048_576
    panes: int = 12
    measured: int = 64


@dataclass(frozen=True, slots=True)
class Config:
    """What the service was told.

    Attributes:
        relay: the relay's name in the report.
        wireguard: the interfaces to watch, or None for every one of the namespace.
        network_namespace: a name or a path, or None for our own.
        exits: exit addresses as written (single, range or prefix), each good for
            `detector.nat.pools.parse_pool`; empty to read them from the NAT rules.
        canaries: peers that are the operator's own.
        window, interval, session_gap: seconds.
        anonymity_floor: peers an exit address is to have at least.
        hook: the hook to use, or "auto" for the first that works.
        listen_beyond_loopback: strangers may reach `listen` although nothing asks them who they are.
        web_config_file: TLS and users in the format of Prometheus' exporter toolkit, or None for neither.
        user: the user that the aggregator runs as.
        inspect_socket: where `exitprint status` asks, or None for nowhere.
        inspect_owner, inspect_group: who may ask there, beside root: a user, and the members of a group.
        inspect_mode: the socket's permissions; None for its owner's alone, and its group's if it has one.
    """

    relay: str = field(default_factory=socket.gethostname)
    wireguard: tuple[str, ...] | None = None
    network_namespace: str | None = None
    exits: tuple[str, ...] = ()
    canaries: Canaries = field(default_factory=Canaries)
    window: float = 86_400.0
    interval: float = 10.0
    session_gap: float = 600.0
    anonymity_floor: int = 5
    hook: Hook = "auto"
    listen: Listen = Listen()
    listen_beyond_loopback: bool = False
    web_config_file: str | None = None
    user: str = "exitprint"
    inspect_socket: str | None = INSPECT_SOCKET
    inspect_owner: str = "root"
    inspect_group: str | None = None
    inspect_mode: int | None = None
    log_format: LogFormat = "auto"
    log_level: LogLevel = "info"
    tables: Tables = Tables()

    @property
    def namespace_path(self) -> Path | None:
        """The namespace's file: `ip netns` keeps those that have a name in /run/netns."""
        return None if self.network_namespace is None else NAMESPACES / self.network_namespace

    @property
    def to_be_guarded(self) -> bool:
        """Whether strangers can reach `listen`, and nobody said that they may read what is there."""
        return not ip_address(self.listen.host).is_loopback and not self.listen_beyond_loopback

    @property
    def socket_mode(self) -> int:
        """The permissions of the inspect socket."""
        return self.inspect_mode or (0o600 if self.inspect_group is None else 0o660)

    def to_json(self) -> str:
        """The configuration for a child process, in one line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The inverse of `to_json`."""
        raw: dict[str, Any] = json.loads(text)
        raw["listen"] = Listen(**raw["listen"])
        raw["tables"] = Tables(**raw["tables"])
        raw["exits"] = tuple(raw["exits"])
        raw["canaries"] = Canaries.from_raw(raw["canaries"])
        raw["wireguard"] = None if raw["wireguard"] is None else tuple(raw["wireguard"])
        return cls(**raw)
