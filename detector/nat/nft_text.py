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
_QUOTED_META = frozenset({"iif", "oif", "iifname", "oifname", "ibrname", "obrname", "sdifname"})
_BINARY = frozenset({"&", "|", "^", "<<", ">>"})


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
    if isinstance(value, list) and value and all(isinstance(one, str | int) for one in value):
        return ",".join(str(one) for one in value)  # flags: any of these
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def show_rule(statements: Json) -> str:
    """A rule's statements in nft's syntax, without counters, logs and comments."""
    if not isinstance(statements, list):
        return show(statements)
    return " ".join(show_statement(one) for one in statements if not _silent(one))


def _silent(statement: Json) -> bool:
    return isinstance(statement, dict) and len(statement) == 1 and next(iter(statement)) in SILENT


def show_statement(statement: Json) -> str:
    """One statement in nft's syntax, as JSON where it is of a kind that is not known."""
    if not isinstance(statement, dict) or len(statement) != 1:
        return show(statement)
    key, inner = next(iter(statement.items()))
    try:
        return _STATEMENT[key](inner) if key in _STATEMENT else show(statement)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return show(statement)


def _match(inner: Json) -> str:
    left, right = inner["left"], inner["right"]
    wanted = quoted(left, right)
    sign = "" if inner["op"] in {"==", "in"} and not binary(left) else f"{inner['op']} "
    return f"{show(left)} {sign}{wanted}"


def binary(left: Json) -> bool:
    """Whether an expression computes with bits, so that nft wants `==` after it."""
    return isinstance(left, dict) and bool(_BINARY & set(left))


def quoted(left: Json, right: Json) -> str:
    """What a field is compared with; names of interfaces stand in quotes."""
    if isinstance(left, dict) and isinstance(left.get("concat"), list):
        return _quoted_concat(left["concat"], right)
    names = (
        isinstance(left, dict)
        and isinstance(left.get("meta"), dict)
        and left["meta"].get("key") in _QUOTED_META
    )
    if not names:
        return show(right)
    if isinstance(right, str):
        return right if right.startswith("@") or right == "*" else f'"{right}"'
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        return "{ " + ", ".join(quoted(left, one) for one in right["set"]) + " }"
    if isinstance(right, dict) and isinstance(right.get("elem"), dict):
        return quoted(left, right["elem"]["val"])
    return show(right)


def _quoted_concat(fields: list[Json], right: Json) -> str:
    match right:
        case {"concat": list(parts)} if len(parts) == len(fields):
            return " . ".join(quoted(one, part) for one, part in zip(fields, parts, strict=True))
        case {"set": list(items)}:
            return "{ " + ", ".join(_quoted_concat(fields, one) for one in items) + " }"
        case {"elem": {"val": inner}}:
            return _quoted_concat(fields, inner)
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
    if port and ":" in show(address) and not isinstance(address, dict):
        return f"[{show(address)}]{port}"
    if port and isinstance(address, dict) and "range" in address and ":" in show(address):
        return "-".join(f"[{show(end)}]" for end in address["range"]) + port
    return _bare_binary(address) + port


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
    return "{ " + ", ".join(_element(one, None) for one in as_list(inner)) + " }"


def _element(one: Json, key: Json) -> str:
    """One element; of a map with what it stands for."""
    if isinstance(one, list):
        first = show(one[0]) if key is None else quoted(key, one[0])
        return f"{first} : {show(one[1])}"
    return show(one)


def _keyed(inner: Json) -> str:
    """The elements of a map or vmap, whose keys are values of its fields."""
    key, data = inner["key"], inner["data"]
    if isinstance(data, dict) and isinstance(data.get("set"), list):
        return "{ " + ", ".join(_element(one, key) for one in data["set"]) + " }"
    return show(data)


def _map(inner: Json) -> str:
    return f"{show(inner['key'])} map {_keyed(inner)}"


def _vmap(inner: Json) -> str:
    return f"{show(inner['key'])} vmap {_keyed(inner)}"


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
    return lambda inner: f" {sign} ".join(_operand(one) for one in inner)


def _operand(value: Json) -> str:
    """An operand; nft 1.0.6 prints flags that are or'ed as a list, newer ones as an operation."""
    if isinstance(value, list):
        return f"({' | '.join(show(one) for one in value)})" if len(value) > 1 else show(value[0])
    return f"({show(value)})" if binary(value) else show(value)


def _bare_binary(value: Json) -> str:
    """``ip saddr & MASK | BASE`` as nft prints it, without the parentheses that conditions need."""
    match value:
        case {"|": [{"&": [inner, mask]}, base]}:
            return f"{show(inner)} & {show(mask)} | {show(base)}"
    return show(value)


def _counter(inner: Json) -> str:
    return f'counter name "{inner}"' if isinstance(inner, str) else "counter"


def _comment(inner: Json) -> str:
    return f'comment "{inner}"'


def _limit(inner: Json) -> str:
    unit, burst_unit = inner.get("rate_unit", ""), inner.get("burst_unit", "")
    over = "over " if inner.get("inv") else ""
    rate = f"{inner['rate']}{' ' + unit if unit not in {'', 'packets'} else ''}/{inner['per']}"
    burst = f" burst {inner['burst']} {burst_unit or 'packets'}" if inner.get("burst") else ""
    return f"limit rate {over}{rate}{burst}"


def _quota(inner: Json) -> str:
    if isinstance(inner, str):
        return f'quota name "{inner}"'
    return f"quota {'over ' if inner.get('inv') else ''}{inner['val']} {inner['val_unit']}"


def _log(inner: Json) -> str:
    words = ["log"]
    for key in ("prefix", "group", "snaplen", "queue-threshold", "level"):
        if inner and key in inner:
            words += [key, f'"{inner[key]}"' if key == "prefix" else str(inner[key])]
    return " ".join(words)


def _fib(inner: Json) -> str:
    return f"fib {' . '.join(as_list(inner['flags']))} {inner['result']}"


def _ct_count(inner: Json) -> str:
    return f"ct count {'over ' if inner.get('inv') else ''}{inner['val']}"


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
    "fib": _fib,
    "rt": lambda inner: f"rt {inner['family'] + ' ' if 'family' in inner else ''}{inner['key']}",
    "concat": lambda inner: " . ".join(show(one) for one in inner),
    "jump": _to("jump"),
    "goto": _to("goto"),
    **{word: _word(word) for word in ("accept", "drop", "return", "continue")},
    **{sign: _binary(sign) for sign in _BINARY},
}

_STATEMENT: dict[str, Callable[[Json], str]] = {
    "match": _match,
    "vmap": _vmap,
    "mangle": _mangle,
    "snat": _nat("snat"),
    "dnat": _nat("dnat"),
    "masquerade": _nat("masquerade"),
    "redirect": _nat("redirect"),
    "counter": _counter,
    "comment": _comment,
    "limit": _limit,
    "quota": _quota,
    "log": _log,
    "ct count": _ct_count,
    "notrack": _word("notrack"),
}
