# SPDX-License-Identifier: Apache-2.0
"""nft's JSON back into nft's text, so that a person sees a rule as it is written.

Covers what source-NAT rules are made of; anything else is shown as its JSON. Counters, logs and comments are
left out: what remains is what the rule does, so the text is also fit for comparing two readings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Json = Any
"""A value as `json.loads` gives it."""

SILENT = frozenset({"counter", "log", "comment", "quota"})
"""Statements that do not decide what happens to a packet's source."""

_BARE_META = frozenset({"iif", "oif", "iifname", "oifname", "iifgroup", "oifgroup"})
_QUOTED_META = frozenset({"iif", "oif", "iifname", "oifname"})


def show(value: Json) -> str:
    """An expression (address, set, payload, map, hash ...) in nft's syntax."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and len(value) == 1:
        key, inner = next(iter(value.items()))
        shown = _SHOW.get(key)
        if shown is not None:
            try:
                return shown(inner)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                pass  # not nft's shape: shown as JSON below
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def show_rule(statements: Json) -> str:
    """A rule's statements in nft's syntax, without counters, logs and comments."""
    if not isinstance(statements, list):
        return show(statements)
    return " ".join(_show_statement(one) for one in statements if not _silent(one))


def _silent(statement: Json) -> bool:
    return isinstance(statement, dict) and len(statement) == 1 and next(iter(statement)) in SILENT


def _show_statement(statement: Json) -> str:
    if not isinstance(statement, dict) or len(statement) != 1:
        return show(statement)
    key, inner = next(iter(statement.items()))
    try:
        return _STATEMENT[key](inner) if key in _STATEMENT else show(statement)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return show(statement)


def _match(inner: Json) -> str:
    left, right = inner["left"], inner["right"]
    wanted = _quote(left, right)
    sign = "" if inner["op"] in {"==", "in"} and not _is_binary(left) else f"{inner['op']} "
    return f"{show(left)} {sign}{wanted}"


def _is_binary(left: Json) -> bool:
    return isinstance(left, dict) and bool({"&", "|", "^", "<<", ">>"} & set(left))


def _quote(left: Json, right: Json) -> str:
    names = (
        isinstance(left, dict)
        and isinstance(left.get("meta"), dict)
        and left["meta"].get("key") in _QUOTED_META
    )
    if not names:
        return show(right)
    if isinstance(right, str):
        return right if right.startswith("@") else f'"{right}"'
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        return (
            "{ " + ", ".join(f'"{one}"' if isinstance(one, str) else show(one) for one in right["set"]) + " }"
        )
    return show(right)


def _nat(name: str) -> Callable[[Json], str]:
    def render(inner: Json) -> str:
        if inner is None:
            return name
        words = [
            name,
            inner.get("family", ""),
            "prefix" if "prefix" in as_list(inner.get("type_flags")) else "",
        ]
        target = _target(inner)
        words += ["to", target] if target else []
        flags = [flag for flag in as_list(inner.get("flags")) if flag != "netmap"]
        return " ".join([word for word in words if word] + ([",".join(flags)] if flags else []))

    return render


def _target(inner: Json) -> str:
    port = f":{show(inner['port'])}" if "port" in inner else ""
    address = inner.get("addr")
    if address is None:
        return port
    if port and ":" in show(address):
        ends = address["range"] if isinstance(address, dict) else [address]
        return "-".join(f"[{show(end)}]" for end in ends) + port
    return show(address) + port


def as_list(value: Json) -> list[Json]:
    """What nft prints bare when it is one and as a list when there are more."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _payload(inner: Json) -> str:
    if "protocol" in inner:
        return f"{inner['protocol']} {inner['field']}"
    bases = {"ll": "ll", "nh": "nh", "th": "th"}
    return f"@{bases.get(inner['base'], inner['base'])},{inner['offset']},{inner['len']}"


def _meta(inner: Json) -> str:
    return str(inner["key"]) if inner["key"] in _BARE_META else f"meta {inner['key']}"


def _ct(inner: Json) -> str:
    return " ".join(["ct", *([inner["dir"]] if "dir" in inner else []), inner["key"]])


def _set(inner: Json) -> str:
    items = [
        f"{show(one[0])} : {show(one[1])}" if isinstance(one, list) else show(one) for one in as_list(inner)
    ]
    return "{ " + ", ".join(items) + " }"


def _map(inner: Json) -> str:
    return f"{show(inner['key'])} map {show(inner['data'])}"


def _vmap(inner: Json) -> str:
    return f"{show(inner['key'])} vmap {show(inner['data'])}"


def _jhash(inner: Json) -> str:
    seed = f" seed 0x{inner['seed']:x}" if "seed" in inner else ""
    return f"jhash {show(inner['expr'])} mod {inner['mod']}{seed}{_offset(inner)}"


def _symhash(inner: Json) -> str:
    return f"symhash mod {inner['mod']}{_offset(inner)}"


def _numgen(inner: Json) -> str:
    return f"numgen {inner['mode']} mod {inner['mod']}{_offset(inner)}"


def _offset(inner: Json) -> str:
    return f" offset {inner['offset']}" if inner.get("offset") else ""


def _mangle(inner: Json) -> str:
    return f"{show(inner['key'])} set {show(inner['value'])}"


def _binary(sign: str) -> Callable[[Json], str]:
    return lambda inner: f"{show(inner[0])} {sign} {show(inner[1])}"


def _elem(inner: Json) -> str:
    return show(inner["val"])


def _xt(inner: Json) -> str:
    return f"xt {inner['type']} {inner['name']}" if isinstance(inner, dict) else "xt"


def _word(word: str) -> Callable[[Json], str]:
    return lambda _: word


def _to(word: str) -> Callable[[Json], str]:
    return lambda inner: f"{word} {inner['target']}"


_SHOW: dict[str, Callable[[Json], str]] = {
    "payload": _payload,
    "meta": _meta,
    "ct": _ct,
    "set": _set,
    "map": _map,
    "jhash": _jhash,
    "symhash": _symhash,
    "numgen": _numgen,
    "elem": _elem,
    "xt": _xt,
    "range": lambda inner: f"{show(inner[0])}-{show(inner[1])}",
    "prefix": lambda inner: f"{show(inner['addr'])}/{inner['len']}",
    "concat": lambda inner: " . ".join(show(one) for one in inner),
    "jump": _to("jump"),
    "goto": _to("goto"),
    **{word: _word(word) for word in ("accept", "drop", "return", "continue")},
    **{sign: _binary(sign) for sign in ("&", "|", "^", "<<", ">>")},
}

_STATEMENT: dict[str, Callable[[Json], str]] = {
    "match": _match,
    "vmap": _vmap,
    "mangle": _mangle,
    "snat": _nat("snat"),
    "dnat": _nat("dnat"),
    "masquerade": _nat("masquerade"),
}
