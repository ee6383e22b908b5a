# SPDX-License-Identifier: Apache-2.0
"""Reads the configuration file: YAML, validated as a whole, every problem on a line of its own.

A line names the file, the line in it, the key, the value and what is expected. Only the command itself
imports this module; its child processes get the result as JSON (`detector.config`).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from detector.config import Config, Hook, Listen, LogFormat, LogLevel, Tables
from detector.errors import UsageError

MAX_FILE_BYTES = 1 << 20

# Where a key stands: ("tables", "peers") or ("exits", 0).
Where = tuple[str | int, ...]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?")
_INTERFACE = re.compile(r"[^\s/:]{1,15}")
_NAMESPACE = re.compile(r"/\S+|[^\s/]+")
_SOCKET = re.compile(r"/[^\s\0]{1,99}")  # sun_path holds 108
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s]+)):(\d{1,5})", re.ASCII)


class ConfigError(UsageError):
    """A configuration file that is not accepted; `problems` holds a line for each thing to mend."""

    def __init__(self, path: Path, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems), f"mend it, then try `exitprint check-config {path}`")


def parse_duration(text: str) -> float:
    """The seconds of a duration such as ``10s``, ``24h`` or ``1m30s``.

    Raises:
        ValueError: it is none.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(text)
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


# --- what a value may be ---------------------------------------------------------------------------


def _because(reason: str) -> PydanticCustomError:
    # The first argument tells these from pydantic's own errors; the second is a template.
    return PydanticCustomError("because", "{reason}", {"reason": reason})


def _matching(pattern: re.Pattern[str]) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError
        return value

    return AfterValidator(check)


def _duration(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise _because("it has no unit")
    if not isinstance(value, str):
        raise ValueError(value)
    return parse_duration(value)


def _pool(value: str) -> str:
    from detector.rules.pools import parse_pool  # noqa: PLC0415  only a file with exits needs it

    try:
        parse_pool(value)
    except UsageError as error:
        raise _because(str(error)) from None
    return value


def _listen(value: object) -> Listen:
    match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(value)
    if int(match[3]) > 65_535:
        raise _because("no port is above 65535")
    host = match[1] or ("127.0.0.1" if match[2] == "localhost" else match[2])
    return Listen(str(ip_address(host)), int(match[3]))


def _mode(value: object) -> int:
    # YAML takes 0660 without quotes for an octal number already.
    mode = int(value, 8) if isinstance(value, str) else value
    if mode not in (0o600, 0o660) or isinstance(mode, bool):
        raise _because("no other mode keeps strangers out and lets those in who may")
    return int(mode)


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise _because(f"the next power of two is {1 << value.bit_length()}")
    return value


def _distinct(value: list[str]) -> list[str]:
    for text in value:
        if value.count(text) > 1:
            raise _because(f"{text} is listed twice")
    return value


def _expects(description: str, **bounds: Any) -> Any:
    # The default is never used: only keys that are set go on, and `Config` has the defaults.
    return Field(None, description=description, **bounds)


def _from_to(low: int, high: int, what: str) -> Any:
    return _expects(f"{what} from {low} to {high}", ge=low, le=high)


def _lasting(low: str, high: str) -> Any:
    description = f"a duration with its unit (s, m, h, d) from {low} to {high}, such as 10s, 24h or 1m30s"
    return _expects(description, ge=parse_duration(low), le=parse_duration(high))


Name = Annotated[str, _matching(_NAME)]
User = Annotated[str, _matching(_USER)]
Namespace = Annotated[str, _matching(_NAMESPACE)]
SocketPath = Annotated[str, _matching(_SOCKET)]
Interfaces = Annotated[list[Annotated[str, _matching(_INTERFACE)]], AfterValidator(_distinct)]
Exits = Annotated[list[Annotated[str, AfterValidator(_pool)]], AfterValidator(_distinct)]
Duration = Annotated[float, BeforeValidator(_duration)]
Endpoint = Annotated[Listen, BeforeValidator(_listen)]
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
    measured: int = _from_to(8, 1 << 20, "a number of flows of a slot in a pane")


class _File(BaseModel):
    """What may stand in the file, and what to say is expected; see `Config`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    relay: Name = _expects(
        "a name of letters, digits, dots and dashes, such as se-sto-wg-001, numbers in quotes"
    )
    wireguard: Interfaces | None = _expects("a list of interface names, such as [wg0]", min_length=1)
    network_namespace: Namespace | None = _expects("a name that `ip netns` lists, or an absolute path")
    exits: Exits = _expects("a list of addresses, ranges and prefixes, such as [203.0.113.68-203.0.113.126]")
    window: Duration = _lasting("10s", "30d")
    interval: Duration = _lasting("1s", "1h")
    session_gap: Duration = _lasting("1s", "7d")
    anonymity_floor: int = _from_to(1, 1_000_000, "a number of peers")
    hook: Hook = _expects("auto, netfilter or kprobe")
    listen: Endpoint = _expects("an address and a port, such as 127.0.0.1:9973 or [::1]:9973")
    listen_beyond_loopback: bool = _expects("true or false")
    user: User = _expects("the name of a user, such as exitprint")
    inspect_socket: SocketPath | None = _expects(
        "an absolute path of at most 100 characters, or null for none"
    )
    inspect_owner: User = _expects("the name of a user, such as root")
    inspect_group: User | None = _expects("the name of a group, such as adm, or null for none")
    inspect_mode: Mode = _expects('"0600" for the owner alone, or "0660" for inspect_group too')
    log_format: LogFormat = _expects("auto, pretty or json")
    log_level: LogLevel = _expects("debug, info, warning or error")
    tables: _Tables = _expects("a group of peers, pairs, exits, destinations, ports, panes and measured")


# --- the file --------------------------------------------------------------------------------------


def load_config(path: Path) -> Config:
    """The configuration in a YAML file.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong.
    """
    document = _parse(path, _read(path))
    try:
        model = _File.model_validate(document.value)
    except ValidationError as error:
        raise ConfigError(path, map(document.line, _problems(error, document))) from None
    config = _config(model)
    if problems := list(_relations(config, document, beyond=bool(model.listen_beyond_loopback))):
        raise ConfigError(path, map(document.line, problems))
    return config


def _config(model: _File) -> Config:
    given = model.model_dump(exclude_unset=True, exclude={"tables", "listen", "listen_beyond_loopback"})
    for key in ("exits", "wireguard"):
        if given.get(key) is not None:
            given[key] = tuple(given[key])
    if model.tables is not None:
        given["tables"] = Tables(**model.tables.model_dump(exclude_unset=True))
    if model.listen is not None:
        given["listen"] = model.listen
    return Config(**given)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(path, [f"{path}: cannot be read: {error.strerror}"]) from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(path, [f"{path}: more than {MAX_FILE_BYTES} bytes are no configuration"])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(path, [f"{path}: byte {error.start} is not UTF-8 text"]) from None


@dataclass(frozen=True, slots=True)
class _Problem:
    """Something wrong at a key; a value that may be a secret is not in `text`."""

    where: Where
    text: str


@dataclass(frozen=True, slots=True)
class _Document:
    """A parsed file: what it holds, and the line that each key stands in."""

    path: Path
    value: dict[Any, Any]
    lines: dict[Where, int]

    def at(self, where: Where) -> object:
        """The value as it stands in the file."""
        value: Any = self.value
        for part in where:
            value = value[part]
        return value

    def line(self, problem: _Problem) -> str:
        """The problem as a person reads it."""
        place = f"{self.path}:{self.lines[problem.where]}" if problem.where in self.lines else f"{self.path}"
        return f"{place}: {_dotted(problem.where)}: {problem.text}"


def _parse(path: Path, text: str) -> _Document:
    try:
        node, value = _load(text)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(path, [_syntax(path, error)]) from None
    except yaml.YAMLError:
        raise ConfigError(path, [f"{path}: holds a character that YAML does not allow"]) from None
    except (ValueError, RecursionError):  # an impossible date, say, or a thousand brackets
        raise ConfigError(path, [f"{path}: holds a value that is none"]) from None
    document = _Document(path, value if isinstance(value, dict) else {}, {})
    if twice := list(_walk(node, (), document.lines, set())):
        raise ConfigError(path, map(document.line, twice))
    if not isinstance(value, dict):
        raise ConfigError(path, [f"{path}: expected keys with values, such as `relay: se-sto-wg-001`"])
    return document


def _load(text: str) -> tuple[yaml.Node | None, object]:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        return node, loader.construct_document(node) if node else {}
    finally:
        loader.dispose()


def _syntax(path: Path, error: yaml.MarkedYAMLError) -> str:
    # The error's own text quotes the line, which may hold anything.
    mark = error.problem_mark or error.context_mark
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    return f"{path}{place}: not YAML: {error.problem or error.context}"


def _walk(
    node: yaml.Node | None, where: Where, lines: dict[Where, int], seen: set[int]
) -> Iterator[_Problem]:
    """Notes the line of every key and yields the keys that are there twice; an alias is walked once."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    for key, marked, value in _children(node):
        place = (*where, key)
        if place in lines:
            yield _Problem(place, f"the key is there again in line {marked.start_mark.line + 1}")
            continue
        lines[place] = marked.start_mark.line + 1
        yield from _walk(value, place, lines, seen)


def _children(node: yaml.Node) -> list[tuple[str | int, yaml.Node, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return [(str(key.value), key, value) for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(index, value, value) for index, value in enumerate(node.value)]
    return []


# --- what to say -----------------------------------------------------------------------------------


def _problems(error: ValidationError, document: _Document) -> list[_Problem]:
    """What pydantic found, in the order of the file."""
    found = [_problem(details, document) for details in error.errors(include_url=False)]
    return sorted(found, key=lambda problem: document.lines.get(problem.where, 0))


def _problem(details: ErrorDetails, document: _Document) -> _Problem:
    where = details["loc"]
    if details["type"] == "invalid_key":  # a number, say
        where = tuple(str(part) for part in where)
        return _Problem(where, _unknown(where))
    if details["type"] == "extra_forbidden":
        return _Problem(where, _unknown(where))
    reason = f" ({details['msg']})" if details["type"] == "because" else ""
    return _Problem(where, f"{_shown(document.at(where))} is not {_expected(where)}{reason}")


def _fields(where: Where) -> dict[str, Any]:
    return dict((_Tables if where[0] == "tables" and len(where) > 1 else _File).model_fields)


def _expected(where: Where) -> str:
    key = where[1] if where[0] == "tables" and len(where) > 1 else where[0]
    return str(_fields(where)[str(key)].description)


def _unknown(where: Where) -> str:
    # The value stays unsaid: nobody knows what it is.
    known = list(_fields(where))
    near = difflib.get_close_matches(str(where[-1]), known, n=1)
    return (
        f"unknown key: did you mean {near[0]}?"
        if near
        else f"unknown key: expected one of {', '.join(known)}"
    )


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):  # a date, or a list that holds itself
        text = str(value) if not isinstance(value, dict | list) else "it"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dotted(where: Where) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")


def _relations(config: Config, document: _Document, *, beyond: bool) -> Iterator[_Problem]:
    def at(key: str) -> Where:
        # One of the two keys is in the file: its line can be named.
        return (key,) if (key,) in document.lines else ("window",)

    for key, seconds in (("interval", config.interval), ("session_gap", config.session_gap)):
        if seconds >= config.window:
            yield _Problem(at(key), f"{key} ({seconds:g}s) is not shorter than window ({config.window:g}s)")
    if config.socket_mode & 0o060 and config.inspect_group is None:
        yield _Problem(
            ("inspect_mode",), "0660 is for a group: name it with inspect_group, or leave it at 0600"
        )
    if not ip_address(config.listen.host).is_loopback and not beyond:
        yield _Problem(
            ("listen",),
            f'"{config.listen}" is not a loopback address, and whoever reaches /metrics can read it: '
            "put a proxy with TLS in front, or set listen_beyond_loopback: true",
        )
