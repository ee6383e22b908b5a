# SPDX-License-Identifier: Apache-2.0
"""The service's configuration as every process holds it, each key defined once.

The file, its example, the manual page and the reload are made from the fields below. It is read from YAML by
`detector.config.file` and goes to the child processes as JSON, so that they import no YAML parser.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, get_args

from detector.base.log_options import LogFormat, LogLevel
from detector.config.canaries import Canaries, Declared
from detector.config.keys import Group, key
from detector.config.kinds import (
    Addresses,
    Choice,
    Duration,
    Endpoint,
    Flag,
    Listen,
    Matching,
    Nullable,
    Number,
    Several,
    SocketMode,
)

Hook = Literal["auto", "netfilter", "kprobe"]

NAMESPACES = Path("/run/netns")
INSPECT_SOCKET = "/run/exitprint/inspect.sock"

_RELAY = Matching(
    "a name of letters, digits, dots and dashes, such as se-sto-wg-001, numbers in quotes",
    r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}",
)
_USER = r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?"
_INTERFACE = Matching("the name of an interface, such as wg0", r"[^\s/:]{1,15}")
_HOST = Matching(
    "a host name, such as relay.example.net", r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?"
)


@dataclass(frozen=True, slots=True)
class Tables:
    """How many entries each table holds."""

    peers: int = key(65_536, Number.of("a number of tunnel addresses", 16, 1 << 22), "Tunnel addresses.")
    pairs: int = key(
        131_072,
        Number.of("a number of pairs of peer and exit", 16, 1 << 24),
        "Pairs of tunnel address and exit in one interval, if no two share a block; a block has room for six"
        " exits of an address, and those with votes take another.",
    )
    exits: int = key(65_536, Number.of("a number of exit addresses", 16, 1 << 22), "Exit addresses.")
    destinations: int = key(
        1_048_576,
        Number.of("a power of two", 16, 1 << 26, power_of_two=True),
        "The memory of flows to the same destination; a power of two.",
    )
    ports: int = key(
        1_048_576,
        Number.of("a power of two", 16, 1 << 26, power_of_two=True),
        "The memory of flows from the same source port; a power of two.",
    )
    panes: int = key(
        12, Number.of("a number of parts of the window", 2, 288), "Parts that the window moves by."
    )
    measured: int = key(
        64,
        Number.of("a number of flows of a tunnel address in a window", 8, 65_535),
        "Flows of a tunnel address whose contrasts are measured in one window; the others are counted only. "
        "The memories need room for twice this for each address that is busy.",
    )


@dataclass(frozen=True, slots=True)
class Config:
    """What the service was told; `exits` are as written, each good for `detector.base.ranges.parse_pool`."""

    relay: str = key(
        socket.gethostname,
        _RELAY,
        "The relay's name in the report.",
        live=True,
        example="se-sto-wg-001",
        said="the host's name",
    )
    wireguard: tuple[str, ...] | None = key(
        None,
        Nullable.of(Several("a list of interface names, such as [wg0]", _INTERFACE, least=1), "null for all"),
        "WireGuard interfaces to watch.",
        live=True,
        example="[wg0]",
        said="every one of the network namespace",
    )
    network_namespace: str | None = key(
        None,
        Nullable.of(
            Matching("a name that `ip netns` lists, or an absolute path", r"/\S+|[^\s/]+"), "null for our own"
        ),
        "The network namespace of the relay, a name or a path.",
        example="relay",
        said="the service's own",
    )
    exits: tuple[str, ...] = key(
        (),
        Several(
            "a list of addresses, ranges and prefixes, such as [203.0.113.68-203.0.113.126]", Addresses()
        ),
        "Exit addresses.",
        live=True,
        example="[203.0.113.68-203.0.113.126]",
        said="read from the NAT rules, and kept current",
    )
    canaries: Canaries = key(
        Canaries(),
        Declared(),
        "Canaries: tunnel addresses of the operator's own test peers, with nobody behind them. Where each "
        "sits in its pool is told by name, so that relays can be compared (docs/fleet.md). They lie in "
        "range, which is given to no customer.",
        example="{range: [10.127.255.0/24], peers: {c1: [10.127.255.1]}}",
        said="none",
    )
    window: float = key(86_400.0, Duration.of("10s", "30d"), "How far back a verdict looks.")
    interval: float = key(10.0, Duration.of("1s", "1h"), "How often the verdict is computed.", live=True)
    session_gap: float = key(
        600.0,
        Duration.of("1s", "7d"),
        "The pause after which a peer's next flow is a new session.",
        live=True,
    )
    anonymity_floor: int = key(
        5,
        Number.of("a number of peers", 1, 1_000_000),
        "Peers that an exit address is to have at least.",
        live=True,
    )
    hook: Hook = key(
        "auto",
        Choice.of(*get_args(Hook)),
        "Where in the kernel flows are seen: netfilter (6.4 and newer), kprobe, or auto for the first that "
        "works.",
    )
    listen: Listen = key(
        Listen(),
        Endpoint(),
        "Where the status page and /metrics are served. Whoever reaches them can read them: beyond loopback "
        "they take web_config_file, with TLS and credentials, unless listen_beyond_loopback says in so many "
        "words that they do not.",
    )
    listen_beyond_loopback: bool = key(
        False, Flag(), "Strangers may reach `listen` although nothing asks them who they are."
    )
    hosts: tuple[str, ...] = key(
        (),
        Several("a list of host names, such as [relay.example.net]", _HOST),
        "Names by which browsers and scrapers reach the page, beside addresses, localhost and the host's own"
        " name. A request for another name is refused: a site could point its name at this relay to read the"
        " page.",
        example="[relay.example.net]",
        said="no others",
    )
    runbooks: str | None = key(
        None,
        Nullable.of(
            Matching(
                "an address of the web, such as https://wiki.example.net/exitprint", r"https?://[^\s\"'<>]+"
            ),
            "null for the relay's own copies",
        ),
        "Where the runbooks are that `exitprint status` links to, as BASE/NAME.md.",
        live=True,
        example="https://wiki.example.net/exitprint/runbooks",
        said="the copies that the relay itself serves at `listen`, under /runbooks",
    )
    web_config_file: str | None = key(
        None,
        Nullable.of(Matching("an absolute path, such as /etc/exitprint/web.yml", r"/[^\0]+")),
        "TLS, client certificates and passwords, in the format of Prometheus' exporter toolkit. It is read "
        "again, with the files that it names, when one of them changes.",
        example="/etc/exitprint/web.yml",
        said="none",
    )
    user: str = key(
        "exitprint",
        Matching("the name of a user, such as exitprint", _USER),
        "The user of the process that judges and serves.",
    )
    inspect_socket: str | None = key(
        INSPECT_SOCKET,
        # sun_path holds 108.
        Nullable.of(
            Matching("an absolute path of at most 100 characters", r"/[^\s\0]{1,99}"), "null for none"
        ),
        "Where `exitprint status`, peers, explain, watch and the like ask.",
    )
    inspect_owner: str = key(
        "root", Matching("the name of a user, such as root", _USER), "A user who may ask there, beside root."
    )
    inspect_group: str | None = key(
        None,
        Nullable.of(Matching("the name of a group, such as adm", _USER), "null for none"),
        "A group whose members may ask there.",
        example="adm",
        said="none",
    )
    inspect_mode: int | None = key(
        None,
        SocketMode(),
        'The socket\'s permissions, "0600" or "0660".',
        example='"0660"',
        said='"0660" with inspect_group, "0600" without',
    )
    log_format: LogFormat = key(
        "auto",
        Choice.of(*get_args(LogFormat)),
        "How the log is written: for people (pretty), for machines (json), or pretty on a terminal (auto).",
        live=True,
    )
    log_level: LogLevel = key(
        "info", Choice.of(*get_args(LogLevel)), "The least important lines that the log has.", live=True
    )
    tables: Tables = key(
        Tables(),
        Group.of(Tables),
        "How many entries each table holds; the defaults are good for 10,000 peers.",
    )

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
        raw["canaries"] = Canaries.from_raw(raw["canaries"])
        raw["exits"], raw["hosts"] = tuple(raw["exits"]), tuple(raw["hosts"])
        raw["wireguard"] = None if raw["wireguard"] is None else tuple(raw["wireguard"])
        return cls(**raw)


__all__ = ["INSPECT_SOCKET", "NAMESPACES", "Config", "Hook", "Listen", "Tables"]
