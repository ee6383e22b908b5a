# SPDX-License-Identifier: Apache-2.0
"""Reads the configuration file: YAML, validated as a whole, every problem on a line of its own.

A line names the file, the line in it, the key, the value and what is expected. Only the command itself
imports this module; its child processes get the result as JSON (`detector.config`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from detector.base.errors import UsageError
from detector.base.log_options import LogFormat, LogLevel
from detector.base.ranges import parse_pool
from detector.config.canaries import EXPECTED, Canaries, NotCanaries, parse_canaries
from detector.config.document import (
    ConfigError,
    Document,
    Problem,
    Where,
    because,
    expects,
    parse,
    problems,
    read,
)
from detector.config.model import Config, Hook, Listen, Tables

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?")
_INTERFACE = re.compile(r"[^\s/:]{1,15}")
_NAMESPACE = re.compile(r"/\S+|[^\s/]+")
_SOCKET = re.compile(r"/[^\s\0]{1,99}")  # sun_path holds 108
_FILE = re.compile(r"/[^\0]+")
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s]+)):(\d{1,5})", re.ASCII)


def parse_duration(text: str) -> float:
    """The seconds of a duration such as ``10s``, ``24h`` or ``1m30s``.

    Raises:
        ValueError: it is none.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(text)
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


SECRET = ("canaries",)
"""Keys whose value is never quoted: an address that is none of a canary's may be a customer's."""

# --- what a value may be ---------------------------------------------------------------------------


def _matching(pattern: re.Pattern[str]) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError
        return value

    return AfterValidator(check)


def _duration(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise because("it has no unit")
    if not isinstance(value, str):
        raise ValueError(value)
    return parse_duration(value)


def _pool(value: str) -> str:
    try:
        parse_pool(value)
    except UsageError as error:
        raise because(str(error)) from None
    return value


def _canaries(value: object) -> Canaries:
    try:
        return parse_canaries(value)
    except NotCanaries as error:
        raise because(str(error)) from None


def _listen(value: object) -> Listen:
    match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(value)
    if int(match[3]) > 65_535:
        raise because("no port is above 65535")
    host = match[1] or ("127.0.0.1" if match[2] == "localhost" else match[2])
    return Listen(str(ip_address(host)), int(match[3]))


def _mode(value: object) -> int:
    # YAML takes 0660 without quotes for an octal number already.
    mode = int(value, 8) if isinstance(value, str) else value
    if mode not in (0o600, 0o660) or isinstance(mode, bool):
        raise because("no other mode keeps strangers out and lets those in who may")
    return int(mode)


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise because(f"the next power of two is {1 << value.bit_length()}")
    return value


def _distinct(value: list[str]) -> list[str]:
    for text in value:
        if value.count(text) > 1:
            raise because(f"{text} is listed twice")
    return value


def _from_to(low: int, high: int, what: str) -> Any:
    return expects(f"{what} from {low} to {high}", ge=low, le=high)


def _lasting(low: str, high: str) -> Any:
    description = f"a duration with its unit (s, m, h, d) from {low} to {high}, such as 10s, 24h or 1m30s"
    return expects(description, ge=parse_duration(low), le=parse_duration(high))


Name = Annotated[str, _matching(_NAME)]
User = Annotated[str, _matching(_USER)]
Namespace = Annotated[str, _matching(_NAMESPACE)]
SocketPath = Annotated[str, _matching(_SOCKET)]
FilePath = Annotated[str, _matching(_FILE)]
Interfaces = Annotated[list[Annotated[str, _matching(_INTERFACE)]], AfterValidator(_distinct)]
Exits = Annotated[list[Annotated[str, AfterValidator(_pool)]], AfterValidator(_distinct)]
Duration = Annotated[float, BeforeValidator(_duration)]
Endpoint = Annotated[Listen, BeforeValidator(_listen)]
Declared = Annotated[Canaries, BeforeValidator(_canaries)]
Mode = Annotated[int, BeforeValidator(_mode)]
PowerOfTwo = Annotated[int, AfterValidator(_power_of_two)]


class _Tables(BaseModel):
    """What may stand under `tables`; see `Tables`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    peers: int = _from_to(16, 1 << 22, "a number of tunnel addresses")
    pairs: int = _from_to(16, 1 << 24, "a number of pairs of peer and exit")
    exits: int = _from_to(16, 1 << 22, "a number of exit addresses")
    destinations: PowerOfTwo = _from_to(16, 1 << 26, "a power of two")
    ports: PowerOfTwo = _from_to(16, 1 << 26, "a power of two")
    panes: int = _from_to(2, 288, "a number of parts of the window")
    measured: int = _from_to(8, 65_535, "a number of flows of a tunnel address in a window")


class _File(BaseModel):
    """What may stand in the file, and what to say is expected; see `Config`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    relay: Name = expects(
        "a name of letters, digits, dots and dashes, such as se-sto-wg-001, numbers in quotes"
    )
    wireguard: Interfaces | None = expects("a list of interface names, such as [wg0]", min_length=1)
    network_namespace: Namespace | None = expects("a name that `ip netns` lists, or an absolute path")
    exits: Exits = expects("a list of addresses, ranges and prefixes, such as [203.0.113.68-203.0.113.126]")
    canaries: Declared = expects(EXPECTED)
    window: Duration = _lasting("10s", "30d")
    interval: Duration = _lasting("1s", "1h")
    session_gap: Duration = _lasting("1s", "7d")
    anonymity_floor: int = _from_to(1, 1_000_000, "a number of peers")
    hook: Hook = expects("auto, netfilter or kprobe")
    listen: Endpoint = expects("an address and a port, such as 127.0.0.1:9973 or [::1]:9973")
    listen_beyond_loopback: bool = expects("true or false")
    web_config_file: FilePath | None = expects("an absolute path, such as /etc/exitprint/web.yml, or null")
    user: User = expects("the name of a user, such as exitprint")
    inspect_socket: SocketPath | None = expects(
        "an absolute path of at most 100 characters, or null for none"
    )
    inspect_owner: User = expects("the name of a user, such as root")
    inspect_group: User | None = expects("the name of a group, such as adm, or null for none")
    inspect_mode: Mode = expects('"0600" for the owner alone, or "0660" for inspect_group too')
    log_format: LogFormat = expects("auto, pretty or json")
    log_level: LogLevel = expects("debug, info, warning or error")
    tables: _Tables = expects("a group of peers, pairs, exits, destinations, ports, panes and measured")


# --- the file --------------------------------------------------------------------------------------


def load_config(path: Path) -> Config:
    """The configuration in a YAML file.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong.
    """
    document = parse(path, read(path))
    try:
        model = _File.model_validate(document.value)
    except ValidationError as error:
        raise ConfigError(path, map(document.line, problems(error, document, _File, SECRET))) from None
    config = _config(model)
    if wrong := list(_relations(config, document)):
        raise ConfigError(path, map(document.line, wrong))
    return config


def _config(model: _File) -> Config:
    given = model.model_dump(exclude_unset=True, exclude={"tables", "listen", "canaries"})
    for key in ("exits", "wireguard"):
        if given.get(key) is not None:
            given[key] = tuple(given[key])
    if model.tables is not None:
        given["tables"] = Tables(**model.tables.model_dump(exclude_unset=True))
    if model.canaries is not None:
        given["canaries"] = model.canaries
    if model.listen is not None:
        given["listen"] = model.listen
    return Config(**given)


def _relations(config: Config, document: Document) -> Iterator[Problem]:
    def at(key: str) -> Where:
        # One of the two keys is in the file: its line can be named.
        return (key,) if (key,) in document.lines else ("window",)

    for key, seconds in (("interval", config.interval), ("session_gap", config.session_gap)):
        if seconds >= config.window:
            yield Problem(at(key), f"{key} ({seconds:g}s) is not shorter than window ({config.window:g}s)")
    if config.socket_mode & 0o060 and config.inspect_group is None:
        yield Problem(
            ("inspect_mode",), "0660 is for a group: name it with inspect_group, or leave it at 0600"
        )
    if config.to_be_guarded and config.web_config_file is None:
        yield Problem(
            ("listen",),
            f'"{config.listen}" is not a loopback address, and whoever reaches /metrics can read it: '
            "ask for TLS and passwords with web_config_file, or set listen_beyond_loopback: true",
        )


__all__ = ["ConfigError", "load_config", "parse_duration"]
