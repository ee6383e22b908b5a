# SPDX-License-Identifier: Apache-2.0
"""Dataclasses as JSON and back, strictly: the one codec of everything that goes from process to process.

What arrives may have been made by a process that somebody has taken over, so a value is what its field's type
says or an error; nothing is converted, left out or ignored. An error names the place and what is expected
there, never the value.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from detector.base.errors import HostError

_INTEGER_LIMIT = 1 << 63

_T = TypeVar("_T")
_Check = Callable[[Any, str], Any]


class Malformed(HostError):
    """What arrived is none of the messages that may arrive."""


def encode(value: object) -> bytes:
    """A dataclass, with all that is in it, as JSON on one line.

    Raises:
        ValueError: a number in it is not finite.
    """
    return json.dumps(value, default=_plain, separators=(",", ":"), allow_nan=False).encode()


def decode(kind: type[_T], raw: bytes | bytearray) -> _T:
    """The inverse of `encode`.

    Raises:
        Malformed: it is not what `encode` makes of a value of this kind.
    """
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        raise Malformed(f"{kind.__name__}: JSON is expected") from None
    return convert(kind, told)


def convert(kind: type[_T], told: object) -> _T:
    """A value of a kind from what JSON makes of it.

    Raises:
        Malformed: it is something else.
    """
    check = _checked(kind)  # type: ignore[arg-type]  # mypy does not see that a type can be hashed
    found: _T = check(told, getattr(kind, "__name__", str(kind)))
    return found


def _plain(value: object) -> dict[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: getattr(value, name) for name in _names(type(value))}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"no message holds a {type(value).__name__}")


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(one.name for one in dataclasses.fields(kind))


@cache
def _checked(kind: Any) -> _Check:
    """The function that checks a value of a type and makes what the type says of it."""
    origin = get_origin(kind)
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enumeration(kind)
    if origin is Literal:
        return _one_of(get_args(kind))
    if origin in (Union, types.UnionType):
        return _optional(get_args(kind))
    if origin is tuple:
        return _tuple(get_args(kind))
    if origin in (dict, Mapping):
        return _mapping(get_args(kind))
    raise TypeError(f"no message holds a {kind}")


def _wrong(where: str, expected: str) -> Malformed:
    return Malformed(f"{where}: {expected} is expected")


def _integer(value: Any, where: str) -> int:
    if type(value) is not int or not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
        raise _wrong(where, "a whole number")
    return value


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _wrong(where, "a number")
    return float(value)


def _exactly(kind: type, expected: str) -> _Check:
    def check(value: Any, where: str) -> Any:
        if type(value) is not kind:
            raise _wrong(where, expected)
        return value

    return check


_SIMPLE: dict[Any, _Check] = {
    int: _integer,
    float: _number,
    bool: _exactly(bool, "true or false"),
    str: _exactly(str, "text"),
    type(None): _exactly(type(None), "null"),
}


def _dataclass(kind: Any) -> _Check:
    hints = get_type_hints(kind)
    checks = {name: _checked(hints[name]) for name in _names(kind)}

    def check(value: Any, where: str) -> Any:
        if type(value) is not dict or value.keys() != checks.keys():
            raise _wrong(where, f"an object with {', '.join(checks) or 'nothing in it'}")
        parts = {name: one(value[name], f"{where}.{name}") for name, one in checks.items()}
        try:
            return kind(**parts)
        except ValueError as error:  # of the dataclass's own, which says what is expected
            raise _wrong(where, str(error)) from None

    return check


def _enumeration(kind: type[Enum]) -> _Check:
    known = {member.value: member for member in kind}

    def check(value: Any, where: str) -> Enum:
        if not isinstance(value, str | int) or isinstance(value, bool) or value not in known:
            raise _wrong(where, f"one of {', '.join(map(str, known))}")
        return known[value]

    return check


def _one_of(known: tuple[Any, ...]) -> _Check:
    def check(value: Any, where: str) -> Any:
        if not any(type(value) is type(one) and value == one for one in known):
            raise _wrong(where, f"one of {', '.join(map(str, known))}")
        return value

    return check


def _optional(kinds: tuple[Any, ...]) -> _Check:
    (kind,) = (one for one in kinds if one is not type(None))
    inner = _checked(kind)

    def check(value: Any, where: str) -> Any:
        return None if value is None else inner(value, where)

    return check


def _tuple(kinds: tuple[Any, ...]) -> _Check:
    if len(kinds) != 2 or kinds[1] is not Ellipsis:
        return _fixed_tuple(tuple(_checked(kind) for kind in kinds))
    inner = _checked(kinds[0])

    def check(value: Any, where: str) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _wrong(where, "a list")
        within = f"{where}[]"
        return tuple(inner(one, within) for one in value)

    return check


def _fixed_tuple(inner: tuple[_Check, ...]) -> _Check:
    def check(value: Any, where: str) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(inner):
            raise _wrong(where, f"a list of {len(inner)}")
        return tuple(one(part, f"{where}[]") for one, part in zip(inner, value, strict=True))

    return check


def _mapping(kinds: tuple[Any, ...]) -> _Check:
    inner = _checked(kinds[1])

    def check(value: Any, where: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise _wrong(where, "an object")
        return {key: inner(one, f"{where}{{}}") for key, one in value.items()}

    return check
