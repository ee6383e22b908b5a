# SPDX-License-Identifier: Apache-2.0
"""How one nft ``snat`` or ``masquerade`` statement chooses the exit: from nft's JSON to a `Mapping`."""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from ipaddress import ip_address, ip_network
from typing import NoReturn

from detector.base.family import Address
from detector.base.ranges import AddressRange
from detector.nat.model import (
    SOURCE_FIELDS,
    Chooser,
    Chosen,
    Field,
    FieldMap,
    JHash,
    MapEntry,
    Mapping,
    Masquerade,
    Netmap,
    NetmapPair,
    Numgen,
    NumgenMode,
    PortsOnly,
    RangeHash,
    SingleAddress,
    Slot,
    SymHash,
)
from detector.nat.nft_text import Json, as_list, show

Maps = AnyMapping[str, Json]
"""The elements of the table's named maps and sets; one of the words below where they are not known."""

FILLED = "filled by packets"
CLOSED = "not in the text"
LARGE = "too large"

_META_FIELDS = frozenset(
    {"iif", "iifname", "iifgroup", "iiftype", "oif", "oifname", "oifgroup", "oiftype"}
    | {"l4proto", "nfproto", "protocol", "length", "pkttype"}
)
_CT_FIELDS = frozenset(
    {"saddr", "daddr", "proto-src", "proto-dst", "protocol", "l3proto", "zone", "direction"}
)


class Unreadable(Exception):
    """This part of a rule is not understood; the text says why, without an address."""


def _fail(reason: str) -> NoReturn:
    raise Unreadable(reason)


def mapping_of(statement: str, body: Json, maps: Maps) -> tuple[Mapping, frozenset[str], str]:
    """The mapping, the flags and the source ports of ``{"snat": body}`` or ``{"masquerade": body}``.

    Raises:
        Unreadable: it is not understood.
    """
    body = {} if body is None else body
    if not isinstance(body, dict):
        _fail("its statement has no shape that nft prints")
    flags = frozenset(flag for flag in as_list(body.get("flags")) if isinstance(flag, str))
    netmap = "netmap" in flags or "prefix" in as_list(body.get("type_flags"))
    kept = flags & {"persistent", "random", "fully-random"}
    if flags - kept - {"netmap"}:
        _fail(f"its flags {sorted(flags - kept - {'netmap'})} are unknown")
    ports = _ports(body.get("port"))
    if statement == "masquerade":
        return Masquerade(), kept, ports
    if "addr" not in body:
        return PortsOnly(), kept, ports
    address = body["addr"]
    if isinstance(address, dict) and set(address) == {"map"}:
        return _map(address["map"], netmap, "persistent" in kept, maps), kept, ports
    kept_bits = _kept_bits(address)
    if kept_bits is not None:
        return Netmap((NetmapPair(None, kept_bits),)), kept, ports
    pool = range_of(address)
    if netmap:
        return Netmap((NetmapPair(None, pool),)), kept, ports
    return SingleAddress(pool.first) if pool.single else RangeHash(pool, "persistent" in kept), kept, ports


def _ports(value: Json) -> str:
    """The source ports as ``1024`` or ``1024-2047``, or an empty string."""
    match value:
        case None:
            return ""
        case int(port):
            return str(port)
        case {"range": [int(first), int(last)]}:
            return f"{first}-{last}"
    _fail("its source ports are not written as numbers")


def _kept_bits(value: Json) -> AddressRange | None:
    """The exits of ``ip saddr & MASK | BASE``, which keeps bits of the source address; else None.

    nft writes the bits of BASE into MASK as well, which changes nothing.
    """
    match value:
        case {"|": [{"&": [inner, mask]}, base]} | {"|": [base, {"&": [inner, mask]}]} if (
            show(inner) in SOURCE_FIELDS
        ):
            try:
                first = ip_address(base)
            except ValueError:
                _fail("its exits are computed in a way that is not understood")
            return AddressRange(first, first + (_mask(mask) & ~int(first)))
    return None


def range_of(value: Json) -> AddressRange:
    """The addresses that ``"A"``, ``{"range": [A, B]}`` or ``{"prefix": ...}`` means.

    Raises:
        Unreadable: it is none of these.
    """
    try:
        match value:
            case str():
                return AddressRange.of(ip_address(value.strip("[]")))
            case {"range": [str(first), str(last)]}:
                return AddressRange(ip_address(first), ip_address(last))
            case {"prefix": {"addr": str(address), "len": int(length)}}:
                return AddressRange.of(ip_network(f"{address}/{length}", strict=False))
            case {"elem": {"val": inner}}:
                return range_of(inner)
            case {"concat": [address, *_]}:
                return range_of(address)
    except ValueError:
        pass
    _fail("its exits are not written as addresses, ranges or prefixes")


def chooser_of(value: Json) -> Chooser | None:
    """The chooser that an expression is, or None when it is something else.

    Raises:
        Unreadable: it is a chooser of a kind that is not understood.
    """
    if not isinstance(value, dict) or len(value) != 1:
        return None
    match value:
        case {"jhash": {"mod": int(modulus), "expr": expression, **rest}}:
            seed = rest.get("seed")
            if seed is not None and not isinstance(seed, int):
                _fail("the seed of its jhash is not a number")
            return JHash(fields_of(expression), _positive(modulus), seed, _offset(rest))
        case {"symhash": {"mod": int(modulus), **rest}}:
            return SymHash(_positive(modulus), _offset(rest))
        case {"numgen": {"mode": "random" | "inc" as mode, "mod": int(modulus), **rest}}:
            return Numgen(NumgenMode(mode), _positive(modulus), _offset(rest))
    if set(value) & {"jhash", "symhash", "numgen"}:
        _fail("its hash or number generator has no shape that nft prints")
    return None


def _positive(modulus: int) -> int:
    return modulus if modulus > 0 else _fail("its modulus is not positive")


def _offset(rest: AnyMapping[Json, Json]) -> int:
    offset = rest.get("offset", 0)
    return offset if isinstance(offset, int) else _fail("its offset is not a number")


def fields_of(value: Json) -> tuple[Field, ...]:
    """The packet's fields that an expression is made of.

    Raises:
        Unreadable: one of them is not understood, or comes from another rule (marks).
    """
    if isinstance(value, dict) and isinstance(value.get("concat"), list):
        return tuple(_field(one) for one in value["concat"])
    return (_field(value),)


def _field(value: Json) -> Field:
    match value:
        case {"payload": {"protocol": str(), "field": str()}}:
            return Field(show(value))
        case {"meta": {"key": str(key)}} if key in _META_FIELDS:
            return Field(show(value))
        case {"ct": {"key": str(key), **rest}} if (
            key.split()[-1] in _CT_FIELDS and rest.get("dir") != "reply"
        ):
            return Field(show(value))
        case {"&": [inner, mask]}:
            return Field(_field(inner).name, _mask(mask))
        case {"meta": {"key": "mark"}} | {"ct": {"key": "mark"}}:
            _fail(f"the exit depends on {show(value)}, which other rules set")
    _fail(f"the exit depends on {show(value)}")


def _mask(value: Json) -> int:
    if isinstance(value, int):
        return value
    try:
        return int(ip_address(value))
    except ValueError:
        _fail("the exit depends on an expression that is not understood")


def _map(body: Json, netmap: bool, persistent: bool, maps: Maps) -> Mapping:
    if not isinstance(body, dict) or not {"key", "data"} <= set(body):
        _fail("its map has no shape that nft prints")
    pairs = pairs_of(body["data"], maps)
    chooser = chooser_of(body["key"])
    if chooser is not None:
        slots = [Slot(*numbers_of(key), range_of(exits), _ports_beside(exits)) for key, exits in pairs]
        return Chosen(chooser, tuple(sorted(slots, key=lambda one: one.first)), persistent)
    fields = fields_of(body["key"])
    entries = tuple(_entry(fields, key, exits) for key, exits in pairs)
    if netmap:
        return Netmap(tuple(NetmapPair(entry.source, entry.exits) for entry in entries))
    name = body["data"][1:] if isinstance(body["data"], str) else ""
    return FieldMap(fields, entries, persistent, name)


def pairs_of(data: Json, maps: Maps) -> list[tuple[Json, Json]]:
    """The elements of a map, named (``"@name"``) or written in place.

    Raises:
        Unreadable: there is no such map, packets fill it, or it is not made of pairs.
    """
    if isinstance(data, str) and data.startswith("@"):
        if data[1:] not in maps:
            _fail("it uses a named map that is not in the listing")
        elements = maps[data[1:]]
        if elements is FILLED:
            _fail("it uses a map that packets fill while traffic flows")
        if elements is CLOSED:
            _fail("its map has no elements in this text: what fills it later decides")
        if elements is LARGE:
            _fail("its map is too large to be read in time")
    else:
        elements = data.get("set") if isinstance(data, dict) else None
    if not isinstance(elements, list) or not all(isinstance(one, list) and len(one) == 2 for one in elements):
        _fail("its map has no shape that nft prints")
    return [(_bare(key), exits) for key, exits in elements]


def _bare(key: Json) -> Json:
    return (
        key["elem"]["val"]
        if isinstance(key, dict) and isinstance(key.get("elem"), dict) and "val" in key["elem"]
        else key
    )


def numbers_of(value: Json) -> tuple[int, int]:
    """The first and last number that a key of a chooser's map, or what it is compared with, means.

    Raises:
        Unreadable: it is no number, range or prefix of numbers.
    """
    match value:
        case int(number):
            return number, number
        case {"range": [int(first), int(last)]} if first <= last:
            return first, last
        case {"prefix": {"addr": int(base), "len": int(length)}} if 0 <= length <= 32:
            return base, base + (1 << 32 - length) - 1
    _fail("its map is not keyed by numbers")


def _entry(fields: tuple[Field, ...], key: Json, exits: Json) -> MapEntry:
    if key == "*":
        return MapEntry(("*",), None, range_of(exits), _ports_beside(exits))
    parts = key["concat"] if isinstance(key, dict) and isinstance(key.get("concat"), list) else [key]
    if len(parts) != len(fields):
        _fail("its map has keys of another shape than the fields that it looks at")
    sources = (_source(one, part) for one, part in zip(fields, parts, strict=True) if one.is_source)
    source = next((one for one in sources if one is not None), None)
    return MapEntry(tuple(show(part) for part in parts), source, range_of(exits), _ports_beside(exits))


def _source(field: Field, value: Json) -> AddressRange | None:
    """The source addresses that a key stands for; None where it is bits of the address."""
    found = range_of(value)
    if field.mask is None:
        return found
    free = ~field.mask & ((1 << found.first.max_prefixlen) - 1)
    return AddressRange(found.first, found.first + free) if free & (free + 1) == 0 else None


def _ports_beside(value: Json) -> str:
    """The ports of an exit that is written ``ADDRESS . PORTS``."""
    match value:
        case {"elem": {"val": inner}}:
            return _ports_beside(inner)
        case {"concat": [_, ports]}:
            return _ports(ports)
    return ""


def first_address(mapping: Mapping) -> Address | None:
    """Some exit of a mapping, to know its family by."""
    return next((pool.first for pool in mapping.pools), None)
