# SPDX-License-Identifier: Apache-2.0
"""Keys of a configuration, each defined once: as a field of the dataclass that the program holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar

from detector.config.kinds import Kind, Problem, Reading, Where

Model = TypeVar("Model")


@dataclass(frozen=True, slots=True)
class Group(Kind):
    """The keys of a dataclass of the program, each defined by `key`."""

    model: type[Any]

    @classmethod
    def of(cls, model: type[Any]) -> Group:
        """The kind for that dataclass."""
        *names, last = keys_of(model)
        return cls(f"a group of {', '.join(names)} and {last}" if names else f"a group of {last}", model)

    def read(self, value: object, where: Where, reading: Reading) -> Any:
        if not isinstance(value, dict):
            reading.refuse(where, value, self)
            return None
        return read_keys(self.model, value, where, reading)

    def write(self, value: Any) -> str:
        inner = (
            f"{name}: {one.kind.write(getattr(value, name))}" for name, one in keys_of(self.model).items()
        )
        return f"{{{', '.join(inner)}}}"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a configuration, defined once.

    Attributes:
        kind: what its value may be.
        text: what it is for, in a sentence or a few.
        live: a reload takes it over; any other key needs a restart.
        example: a value to show, as it is written, where the default shows nothing.
        default: how to say the default, where it is not a value.
    """

    kind: Kind
    text: str
    live: bool = False
    example: str = ""
    default: str = ""


def key(default: Any, kind: Kind, text: str, *, live: bool = False, example: str = "", said: str = "") -> Any:
    """A field of a configuration's dataclass.

    Args:
        default: its value where the file does not name the key; a function for one that this host decides.
        kind: what its value may be.
        text: what it is for.
        live: a reload takes it over.
        example: a value to show where the default shows nothing.
        said: how to say a default that is no value.
    """
    metadata = {"key": Key(kind, text, live, example, said)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def keys_of(model: type[Any]) -> Mapping[str, Key]:
    """The keys that are defined by a dataclass, in their order."""
    return {one.name: one.metadata["key"] for one in fields(model) if "key" in one.metadata}


def default_of(one: Field[Any]) -> Any:
    """The default of a field."""
    return one.default if one.default_factory is MISSING else one.default_factory()


def read_keys(
    model: type[Model], value: Mapping[str, object], where: Where, reading: Reading
) -> Model | None:
    """The dataclass of what is set in a mapping; None, and problems in `reading`, if something is wrong."""
    known = keys_of(model)
    before = len(reading.problems)
    given = {}
    for name, one in value.items():
        if name in known:
            given[name] = known[name].kind.read(one, (*where, name), reading)
        else:
            reading.problems.append(Problem((*where, name), unknown_key(name, model)))
    return None if len(reading.problems) > before else model(**given)


def unknown_key(name: str, model: type[Any]) -> str:
    """What is said of a key that is not known; its value stays unsaid: nobody knows what it is."""
    import difflib  # noqa: PLC0415  only a file that is refused needs it

    foreign: Mapping[str, str] = getattr(model, "FOREIGN", {})
    if name in foreign:
        return foreign[name]
    known = list(keys_of(model))
    near = difflib.get_close_matches(name, known, n=1)
    return (
        f"unknown key: did you mean {near[0]}?"
        if near
        else f"unknown key: expected one of {', '.join(known)}"
    )
