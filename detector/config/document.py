# SPDX-License-Identifier: Apache-2.0
"""YAML files of keys and values, with the line that each stands in; bounded, whatever the file holds.

A message names the file, the line in it, the key, the value and what is expected, each problem on a line of
its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from detector.base.errors import UsageError
from detector.config.kinds import Problem, Unusable, Where

MAX_VALUES = 65_536
"""Values in a file; those behind an alias count each time that it is used."""

MAX_DEPTH = 16
_TOO_DEEP = f"more than {MAX_DEPTH} levels of lists and keys are no configuration"
_MAX_PROBLEMS = 20
_MAX_DIGITS = 30
_MAX_TOLD = 1 << 15  # characters of a file whose mistake is looked for a second time
_ENDPOINT = re.compile(r":\s+\[[0-9A-Fa-f:.]*::?[0-9A-Fa-f:.]*\]:\d")

# libyaml's where it is there: 65,536 values take 0.3 s and not 8.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class ConfigError(UsageError):
    """A configuration file that is not accepted; `problems` holds a line for each thing to mend."""

    def __init__(self, path: Path, problems: Iterable[str]) -> None:
        found = tuple(problems)
        more = len(found) - _MAX_PROBLEMS
        self.problems = (*found[:_MAX_PROBLEMS], f"{path}: and {more} more") if more > 0 else found
        super().__init__("\n".join(self.problems), f"mend it, then try `exitprint check-config {path}`")


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: what it holds, and the line that each key stands in."""

    path: Path
    value: dict[str, Any]
    lines: dict[Where, int]

    def line(self, problem: Problem) -> str:
        """The problem as a person reads it."""
        number = self._number(problem.where)
        place = f"{self.path}:{number}" if number else f"{self.path}"
        return f"{place}: {_dotted(problem.where)}: {problem.text}"

    def error(self, problems: Iterable[Problem]) -> ConfigError:
        """All problems, in the order of the file."""
        ordered = sorted(problems, key=lambda problem: self._number(problem.where))
        return ConfigError(self.path, map(self.line, ordered))

    def _number(self, where: Where) -> int:
        """The line of a place, or of the nearest one around it: what an alias holds has lines elsewhere."""
        if where in self.lines:
            return self.lines[where]
        while len(where) > 1:
            where = where[:-1]
            if where in self.lines:
                return self.lines[where]
        return 0


def parse(path: Path, text: str, example: str) -> Document:
    """The keys and values of a YAML text.

    Args:
        path: of the file.
        text: what it holds.
        example: a line that the file could have.

    Raises:
        ConfigError: it is none, too much, or a key is there twice.
    """
    builder = _Builder(path)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(path, [_syntax(path, text, error)]) from None
    except yaml.reader.ReaderError:
        wrong = yaml.SafeLoader.NON_PRINTABLE.search(text)
        line = text.count("\n", 0, wrong.start() if wrong else 0) + 1
        raise ConfigError(path, [f"{path}:{line}: holds a character that YAML does not allow"]) from None
    document = Document(path, builder.value if isinstance(builder.value, dict) else {}, builder.lines)
    if builder.twice:
        raise ConfigError(path, map(document.line, builder.twice))
    if not isinstance(builder.value, dict):
        raise ConfigError(path, [f"{path}:{builder.line}: expected keys with values, such as `{example}`"])
    return document


def _syntax(path: Path, text: str, error: yaml.MarkedYAMLError) -> str:
    if "nesting depth" in (error.problem or ""):  # libyaml 0.2.6 and newer look ahead
        return f"{path}:{error.problem_mark.line + 1 if error.problem_mark else 1}: {_TOO_DEEP}"
    if len(text) <= _MAX_TOLD:  # PyYAML's own parser says it better than libyaml
        try:
            for _ in yaml.parse(text, Loader=yaml.SafeLoader):
                pass
        except yaml.MarkedYAMLError as plainer:
            error = plainer
        except yaml.YAMLError:
            pass
    # The error's own text quotes the line, which may hold anything.
    mark = error.problem_mark or error.context_mark
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    line = (text.split("\n")[mark.line : mark.line + 1] or [""])[0] if mark else ""
    hint = '; an address such as "[::1]:9973" stands in quotes' if _ENDPOINT.search(line) else ""
    return f"{path}{place}: not YAML: {error.problem or error.context}{hint}"


# --- from YAML's events to values -------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    """A list or a mapping that is being filled.

    Attributes:
        size: how many values it comes to.
        key: the mapping's key that waits for its value.
    """

    value: list[Any] | dict[str, Any]
    where: Where
    anchor: str | None
    size: int = 1
    key: str | None = None


@dataclass(slots=True)
class _Builder:
    """Makes values of events, one at a time, without recursion.

    Attributes:
        value: the document, once it is complete; an empty one holds no key.
        line: where it begins.
        lines: where each key stands.
        twice: keys that are there again.
    """

    path: Path
    value: Any = field(default_factory=dict)
    line: int = 1
    lines: dict[Where, int] = field(default_factory=dict)
    twice: list[Problem] = field(default_factory=list)
    _open: list[_Open] = field(default_factory=list)
    _anchors: dict[str, tuple[Any, int] | None] = field(default_factory=dict)
    _scalars: Any = field(default_factory=lambda: yaml.SafeLoader(""))
    _begun: bool = False

    def take(self, event: yaml.Event) -> None:
        """The next event.

        Raises:
            ConfigError: the file holds more than a configuration does, or what none does.
        """
        line = event.start_mark.line + 1 if event.start_mark else 0
        match event:
            case yaml.DocumentStartEvent():
                if self._begun:
                    self._refuse(line, "a second document begins: a configuration is one")
                self._begun = True
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                self._begin(event, line)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                done = self._open.pop()
                if done.anchor:
                    self._anchors[done.anchor] = (done.value, done.size)
                self._put(done.value, done.size, line)
            case yaml.ScalarEvent():
                self._scalar(event, line)
            case yaml.AliasEvent():
                self._alias(event.anchor, line)

    def _begin(self, event: yaml.SequenceStartEvent | yaml.MappingStartEvent, line: int) -> None:
        if len(self._open) >= MAX_DEPTH:
            self._refuse(line, _TOO_DEEP)
        if self._awaits_key():
            self._refuse(line, "a list or a mapping stands where a key is expected")
        where = self._next_where(line)
        value: list[Any] | dict[str, Any] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
        if event.anchor:
            self._anchors[event.anchor] = None  # not complete: nothing inside can be an alias of it
        self._open.append(_Open(value, where, event.anchor))

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        if self._awaits_key():
            # As it is written: to YAML `123` and `no` would be a number and a flag.
            self._key(event.value, line)
            return
        value = self._value_of(event)
        if event.anchor:
            self._anchors[event.anchor] = (value, 1)
        self._next_where(line)
        self._put(value, 1, line)

    def _value_of(self, event: yaml.ScalarEvent) -> object:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._scalars.resolve(yaml.ScalarNode, event.value, event.implicit)
        node = yaml.ScalarNode(tag, event.value)
        kind = tag.rpartition(":")[2]
        if kind == "timestamp":
            return Unusable(event.value, "to YAML it is a date: in quotes it is a text")
        if kind in ("int", "float") and len(event.value) > _MAX_DIGITS:
            return Unusable(event.value, f"a number of {len(event.value)} characters")
        try:
            value = self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError, KeyError, OverflowError):
            return Unusable(event.value, f"it is no {kind}")
        return value if isinstance(value, str | int | float | None) else Unusable(event.value, f"a {kind}")

    def _alias(self, name: str | None, line: int) -> None:
        if self._awaits_key():
            self._refuse(line, "an alias stands where a key is expected")
        known = self._anchors.get(name or "")
        if known is None:
            why = "stands inside what it names" if name in self._anchors else "names nothing"
            self._refuse(line, f"the alias *{str(name)[:40]} {why}")
        value, size = known
        self._next_where(line)
        self._put(value, size, line)

    def _awaits_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].value, dict) and self._open[-1].key is None

    def _key(self, name: str, line: int) -> None:
        around = self._open[-1]
        where = (*around.where, name)
        if where in self.lines:
            self.twice.append(Problem(where, f"the key is there again in line {line}"))
        else:
            self.lines[where] = line
        around.key = name

    def _next_where(self, line: int) -> Where:
        """Where the value that begins here stands."""
        if not self._open:
            self.line = line
            return ()
        around = self._open[-1]
        if isinstance(around.value, dict):
            return (*around.where, around.key or "")
        where = (*around.where, len(around.value))
        self.lines[where] = line
        return where

    def _put(self, value: Any, size: int, line: int) -> None:
        if not self._open:
            self.value = {} if value is None else value
            return
        around = self._open[-1]
        around.size += size
        if around.size > MAX_VALUES:
            self._refuse(
                line, f"more than {MAX_VALUES} values, aliases counted each time, are no configuration"
            )
        if isinstance(around.value, dict):
            around.value[around.key or ""] = value
            around.key = None
        else:
            around.value.append(value)

    def _refuse(self, line: int, what: str) -> NoReturn:
        raise ConfigError(self.path, [f"{self.path}:{line}: {what}"])


def _dotted(where: Where) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
