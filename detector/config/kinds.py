# SPDX-License-Identifier: Apache-2.0
"""What the value of a key may be: one kind for each sort of value, with its bounds and its words.

A kind reads what YAML made of a value, and writes a value as a person would. Everything that a person meets
of a key is made from its kind: what a message says is expected, the example file, the manual page. Standard
library alone: the service's processes hold the kinds with `Config`.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s]+)):(\d{1,5})", re.ASCII)
# What YAML leaves a text without quotes.
_BARE = re.compile(r"[A-Za-z/$][\w./:@$-]*", re.ASCII)
_NO_TEXT = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}

# Where a value stands: ("tables", "peers") or ("exits", 0).
Where = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at a key; a value that may be a secret is not in `text`."""

    where: Where
    text: str


class Refused(Exception):
    """The value is not of its kind; says why, where that is not plain from what is expected."""


@dataclass(slots=True)
class Reading:
    """The problems that are found on the way through one document."""

    problems: list[Problem] = field(default_factory=list)

    def refuse(self, where: Where, value: object, kind: Kind, reason: str = "") -> None:
        """Note that a value is not what is expected of it."""
        shown = "its value, not shown here," if kind.secret else shown_value(value)
        why = f" ({reason})" if reason else ""
        self.problems.append(Problem(where, f"{shown} is not {kind.expected}{why}"))


@dataclass(frozen=True, slots=True)
class Unusable:
    """What stands in a file where YAML sees a value that we cannot take, such as a date.

    Attributes:
        text: as it stands there.
        reason: why, and what to do.
    """

    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Kind(ABC):
    """A sort of value.

    Attributes:
        expected: what a value has to be, to come after "is not".
        secret: values are not to be shown.
    """

    expected: str
    secret: bool = field(default=False, kw_only=True)

    @abstractmethod
    def read(self, value: object, where: Where, reading: Reading) -> Any:
        """The value as the program holds it; None, and a problem in `reading`, where it is none."""

    def write(self, value: Any) -> str:
        """A value of the program in YAML."""
        return as_text(value) if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True, slots=True)
class Plain(Kind):
    """A sort of value that holds no others."""

    def read(self, value: object, where: Where, reading: Reading) -> Any:
        try:
            if isinstance(value, Unusable):
                raise Refused(value.reason)
            return self.take(value)
        except Refused as refused:
            reading.refuse(where, value, self, str(refused))
            return None

    @abstractmethod
    def take(self, value: object) -> Any:
        """The value as the program holds it.

        Raises:
            Refused: it is not of this kind.
        """


@dataclass(frozen=True, slots=True)
class Matching(Plain):
    """A text that a pattern matches as a whole."""

    pattern: str = "(?s:.+)"

    def take(self, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise Refused
        return value


@dataclass(frozen=True, slots=True)
class Choice(Plain):
    """One of a few words."""

    options: tuple[str, ...]

    @classmethod
    def of(cls, *options: str) -> Choice:
        """The kind for these words."""
        return cls(f"{', '.join(options[:-1])} or {options[-1]}", options)

    def take(self, value: object) -> str:
        if value not in self.options:
            raise Refused
        return str(value)


@dataclass(frozen=True, slots=True)
class Flag(Plain):
    """True or false."""

    expected: str = "true or false"

    def take(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise Refused
        return value


@dataclass(frozen=True, slots=True)
class Number(Plain):
    """A whole number within bounds."""

    low: int
    high: int
    power_of_two: bool = False

    @classmethod
    def of(cls, what: str, low: int, high: int, *, power_of_two: bool = False) -> Number:
        """The kind for so many of something."""
        return cls(f"{what} from {low} to {high}", low, high, power_of_two)

    def take(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise Refused
        if self.power_of_two and value & (value - 1):
            raise Refused(f"the next power of two is {1 << value.bit_length()}")
        return value


@dataclass(frozen=True, slots=True)
class Duration(Plain):
    """A duration with its unit; the program holds seconds."""

    low: float
    high: float

    @classmethod
    def of(cls, low: str, high: str) -> Duration:
        """The kind for durations between two others, both included."""
        said = f"a duration with its unit (s, m, h, d) from {low} to {high}, such as 10s, 24h or 1m30s"
        return cls(said, parse_duration(low), parse_duration(high))

    def take(self, value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise Refused("it has no unit")
        try:
            seconds = parse_duration(value) if isinstance(value, str) else -1.0
        except ValueError:
            raise Refused from None
        if not self.low <= seconds <= self.high:
            raise Refused
        return seconds

    def write(self, value: float) -> str:
        for unit, seconds in _SECONDS.items():
            if value >= seconds and not value % seconds and not (unit == "d" and value == seconds):
                return f"{value // seconds:.0f}{unit}"
        return f"{value:g}s"


@dataclass(frozen=True, slots=True)
class Listen:
    """Where /metrics is served; port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 9973

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Endpoint(Plain):
    """An address and a port."""

    expected: str = 'an address and a port, such as 127.0.0.1:9973 or "[::1]:9973" with its quotes'

    def take(self, value: object) -> Listen:
        match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise Refused
        if int(match[3]) > 65_535:
            raise Refused("no port is above 65535")
        host = match[1] or ("127.0.0.1" if match[2] == "localhost" else match[2])
        try:
            return Listen(str(ip_address(host)), int(match[3]))
        except ValueError:
            raise Refused from None

    def write(self, value: Listen) -> str:
        return as_text(str(value))


@dataclass(frozen=True, slots=True)
class SocketMode(Plain):
    """The permissions of a socket."""

    expected: str = '"0600" for the owner alone, or "0660" for inspect_group too'

    def take(self, value: object) -> int:
        # YAML takes 0660 without quotes for an octal number already.
        if isinstance(value, str):
            value = int(value, 8) if re.fullmatch("[0-7]{1,6}", value) else None
        if not isinstance(value, int) or isinstance(value, bool) or value not in (0o600, 0o660):
            raise Refused("no other mode keeps strangers out and lets those in who may")
        return value

    def write(self, value: int | None) -> str:
        return "null" if value is None else f'"{value:04o}"'


@dataclass(frozen=True, slots=True)
class Addresses(Plain):
    """An address, a range or a prefix; the program holds it as it is written."""

    expected: str = "an address, a range or a prefix, such as 203.0.113.68-203.0.113.126"

    def take(self, value: object) -> str:
        from detector.base.errors import UsageError  # noqa: PLC0415  only a file with addresses needs them
        from detector.base.ranges import parse_pool  # noqa: PLC0415

        if not isinstance(value, str):
            raise Refused
        try:
            parse_pool(value)
        except UsageError as error:
            raise Refused(str(error)) from None
        return value


@dataclass(frozen=True, slots=True)
class Nullable(Kind):
    """A value of another kind, or null."""

    inner: Kind

    @classmethod
    def of(cls, inner: Kind, null: str = "null") -> Nullable:
        """The kind for that.

        Args:
            inner: the other kind.
            null: how to say what null is for.
        """
        return cls(f"{inner.expected}, or {null}", inner, secret=inner.secret)

    def read(self, value: object, where: Where, reading: Reading) -> Any:
        if value is None:
            return None
        inner = self.inner
        if isinstance(inner, Plain):  # null would have been right, too
            inner = replace(inner, expected=self.expected)
        return inner.read(value, where, reading)

    def write(self, value: Any) -> str:
        return "null" if value is None else self.inner.write(value)


@dataclass(frozen=True, slots=True)
class Several(Kind):
    """A list of values of one kind, none twice; the program holds a tuple."""

    item: Kind
    least: int = 0

    def read(self, value: object, where: Where, reading: Reading) -> tuple[Any, ...] | None:
        if not isinstance(value, list) or len(value) < self.least:
            reason = value.reason if isinstance(value, Unusable) else ""
            reading.refuse(where, value, self, reason)
            return None
        before = len(reading.problems)
        read = tuple(self.item.read(one, (*where, at), reading) for at, one in enumerate(value))
        if len(reading.problems) > before:
            return None
        seen: set[object] = set()
        for at, one in enumerate(read):
            if one in seen:
                reading.problems.append(Problem((*where, at), f"{one} is listed twice"))
            seen.add(one)
        return read

    def write(self, value: tuple[Any, ...]) -> str:
        return f"[{', '.join(map(self.item.write, value))}]"


@dataclass(frozen=True, slots=True)
class Named(Kind):
    """Values of one kind under names that the person chooses; the program holds a dict."""

    item: Kind
    name: Kind
    most: int = 100_000

    def read(self, value: object, where: Where, reading: Reading) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            reading.refuse(where, value, self)
            return None
        if len(value) > self.most:
            reading.problems.append(Problem(where, f"{len(value)} are too many: at most {self.most}"))
            return None
        for name in value:
            self.name.read(name, (*where, name), reading)
        return {name: self.item.read(one, (*where, name), reading) for name, one in value.items()}

    def write(self, value: Mapping[str, Any]) -> str:
        inner = (f"{as_text(name)}: {self.item.write(one)}" for name, one in value.items())
        return f"{{{', '.join(inner)}}}"


def parse_duration(text: str) -> float:
    """The seconds of a duration such as ``10s``, ``24h`` or ``1m30s``.

    Raises:
        ValueError: it is none.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(text)
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def as_text(value: str) -> str:
    """A text in YAML: without quotes where it stays a text without them."""
    bare = _BARE.fullmatch(value) and value.lower() not in _NO_TEXT and not value.endswith(":")
    endpoint = re.fullmatch(r"\d+\.\d+\.\d+\.\d+:\d+", value)
    return value if bare or endpoint else json.dumps(value)


def shown_value(value: object) -> str:
    """A value from a file as a message shows it: on one line, and short."""
    if isinstance(value, Unusable):
        return value.text if len(value.text) <= 60 else f"{value.text[:57]}..."
    if isinstance(value, list | dict) and len(value) > 20:  # the start is enough of a long one
        value = value[:20] if isinstance(value, list) else dict(list(value.items())[:20])
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):  # it holds what YAML alone has
        text = "it"
    return text if len(text) <= 60 else f"{text[:57]}..."
