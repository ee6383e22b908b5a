# SPDX-License-Identifier: Apache-2.0
"""YAML files of keys and values, validated as a whole, every problem on a line of its own.

A line names the file, the line in it, the key, the value and what is expected.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from detector.base.errors import UsageError

MAX_FILE_BYTES = 1 << 20

# Where a key stands: ("tables", "peers") or ("exits", 0).
Where = tuple[str | int, ...]


class ConfigError(UsageError):
    """A configuration file that is not accepted; `problems` holds a line for each thing to mend."""

    def __init__(self, path: Path, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems), f"mend it, then try `exitprint check-config {path}`")


def because(reason: str) -> PydanticCustomError:
    """An error that says why a value is not what is expected."""
    # The first argument tells these from pydantic's own errors; the second is a template.
    return PydanticCustomError("because", "{reason}", {"reason": reason})


def expects(description: str, **bounds: Any) -> Any:
    """A key that may be left out, and what to say is expected of its value."""
    # The default is never used: only keys that are set go on, and `Config` has the defaults.
    return Field(None, description=description, **bounds)


def read(path: Path) -> str:
    """The text of a file.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
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
class Problem:
    """Something wrong at a key; a value that may be a secret is not in `text`."""

    where: Where
    text: str


@dataclass(frozen=True, slots=True)
class Document:
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

    def line(self, problem: Problem) -> str:
        """The problem as a person reads it."""
        place = f"{self.path}:{self.lines[problem.where]}" if problem.where in self.lines else f"{self.path}"
        return f"{place}: {_dotted(problem.where)}: {problem.text}"


def parse(path: Path, text: str) -> Document:
    """The keys and values of a YAML text.

    Raises:
        ConfigError: it is none, or a key is there twice.
    """
    try:
        node, value = _load(text)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(path, [_syntax(path, error)]) from None
    except yaml.YAMLError:
        raise ConfigError(path, [f"{path}: holds a character that YAML does not allow"]) from None
    except (ValueError, RecursionError):  # an impossible date, say, or a thousand brackets
        raise ConfigError(path, [f"{path}: holds a value that is none"]) from None
    document = Document(path, value if isinstance(value, dict) else {}, {})
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


def _walk(node: yaml.Node | None, where: Where, lines: dict[Where, int], seen: set[int]) -> Iterator[Problem]:
    """Notes the line of every key and yields the keys that are there twice; an alias is walked once."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    for key, marked, value in _children(node):
        place = (*where, key)
        if place in lines:
            yield Problem(place, f"the key is there again in line {marked.start_mark.line + 1}")
            continue
        lines[place] = marked.start_mark.line + 1
        yield from _walk(value, place, lines, seen)


def _children(node: yaml.Node) -> list[tuple[str | int, yaml.Node, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return [(str(key.value), key, value) for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(index, value, value) for index, value in enumerate(node.value)]
    return []


def problems(
    error: ValidationError, document: Document, model: type[BaseModel], secret: Collection[str] = ()
) -> list[Problem]:
    """What pydantic found, in the order of the file.

    Args:
        error: its findings.
        document: the file.
        model: what may stand in it.
        secret: keys whose values, and what is within them, are not to be shown.
    """
    found = [_problem(details, document, model, secret) for details in error.errors(include_url=False)]
    return sorted(found, key=lambda problem: document.lines.get(problem.where, 0))


def _problem(
    details: ErrorDetails, document: Document, model: type[BaseModel], secret: Collection[str]
) -> Problem:
    where = details["loc"]
    if details["type"] == "invalid_key":  # a number, say
        where = tuple(str(part) for part in where)
        return Problem(where, _unknown(model, where))
    if details["type"] == "extra_forbidden":
        return Problem(where, _unknown(model, where))
    shown = "its value, not shown here," if where[0] in secret else _shown(document.at(where))
    reason = f" ({details['msg']})" if details["type"] == "because" else ""
    return Problem(where, f"{shown} is not {_expected(model, where)}{reason}")


def _place(model: type[BaseModel], where: Where) -> tuple[type[BaseModel], str]:
    """The group that a place is in, and its key there, or that of the list or mapping around it."""
    for part in where[:-1]:
        inner = _group(model, str(part))
        if inner is None:
            return model, str(part)
        model = inner
    return model, str(where[-1])


def _group(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The keys that may stand under a key."""
    field = model.model_fields.get(key)
    kinds = (field.annotation, *get_args(field.annotation)) if field else ()
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _expected(model: type[BaseModel], where: Where) -> str:
    group, key = _place(model, where)
    return str(group.model_fields[key].description)


def _unknown(model: type[BaseModel], where: Where) -> str:
    # The value stays unsaid: nobody knows what it is.
    known = list(_place(model, where)[0].model_fields)
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
