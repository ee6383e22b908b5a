# SPDX-License-Identifier: Apache-2.0
"""Records of keys and values: ulogd2's JSON and GPRINT, and every log that wraps conntrack's lines in JSON.

journald (``journalctl -o json``, ``json-pretty``, ``export``), Docker, Loki, Elasticsearch and others keep
the line under some key; it is found by what it holds. The time is taken from the keys that those use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from detector.conntrack.clocks import classic, iso
from detector.conntrack.forms.canonical import GARBAGE, Tuple, in_blocks, line, protocol_number
from detector.conntrack.forms.text import FLOW

JSON, GPRINT, EXPORT = "JSON", "ulogd2 (GPRINT)", "journalctl -o export"
JSON_LINE = re.compile(rb"^(?:data:[ ]?|\x1e)?[\[ \t]*\{(?:[ \t]*$|[ \t]*\")", re.MULTILINE)
GPRINT_LINE = re.compile(
    rb"^[^\n]{0,200}?\borig\.ip\.saddr\.str=[^\n]{0,2000}?\breply\.ip\.daddr\.str=", re.MULTILINE
)
EXPORT_LINE = re.compile(rb"^(?:__CURSOR|__REALTIME_TIMESTAMP)=", re.MULTILINE)
_LONGEST = 1 << 18
_DEEPEST = 4
_MOST_TRIES = 64  # to end an object that goes over lines
_LATEST = 1e12
_EVENTS = {"1": "NEW", "2": "UPDATE", "4": "DESTROY"}
_TIMES = (
    "__REALTIME_TIMESTAMP",
    "_SOURCE_REALTIME_TIMESTAMP",
    "timestamp",
    "@timestamp",
    "timereported",
    "time",
    "ts",
    "date",
    "eventtime",
    "_time",
)
_UNITS = (1e17, 1e9), (1e14, 1e6), (1e11, 1e3)  # a number above is in nano-, micro-, milliseconds


def rewrite_json(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same flows as conntrack's lines; a record that holds no flow becomes an empty line."""
    return in_blocks(_of_record(record) for record in _objects(blocks))


def rewrite_gprint(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Likewise, from ``key=value,key=value``."""
    return in_blocks(_of_pairs(text) for block in blocks for text in block.split(b"\n")[:-1])


def rewrite_export(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Likewise, from ``KEY=value`` lines with an empty line behind each record."""
    return in_blocks(_of_record(record) for record in _exported(blocks))


def _objects(blocks: Iterator[bytes]) -> Iterator[Any]:
    """The objects of a stream, one a line or spread over lines; None for what is none."""
    decoder = json.JSONDecoder()
    open_object, tries = "", 0
    for block in blocks:
        for text in block.decode("utf-8", "replace").split("\n")[:-1]:
            part = text.strip(" \t\r\x1e").removeprefix("data:").strip()
            if not open_object:
                part = part.lstrip("[, ")
            if not part or (not open_object and part in {"]", "],"}):
                continue
            open_object += part
            goes_on = part[-1] in "{[," or (open_object != part and part[0] != "}")
            if goes_on and part[-2:] not in {"},", "]["} and len(open_object) < _LONGEST:
                continue
            try:
                value, _ = decoder.raw_decode(open_object)
            except (ValueError, RecursionError):
                tries += 1
                if open_object != part and len(open_object) < _LONGEST and tries < _MOST_TRIES:
                    continue
                value = None
            yield value
            open_object, tries = "", 0
    if open_object:
        yield None


def _exported(blocks: Iterator[bytes]) -> Iterator[Any]:
    record: dict[str, Any] = {}
    for block in blocks:
        for text in block.split(b"\n")[:-1]:
            key, equals, value = text.partition(b"=")
            if equals and len(record) < 200:
                record[key.decode("latin-1")] = value.decode("utf-8", "replace")
            elif not text and record:
                yield record
                record = {}
    if record:
        yield record


def _of_pairs(text: bytes) -> bytes:
    if not text.strip():
        return b"\n"
    pairs = (part.partition("=") for part in text.decode("latin-1").split(","))
    return _of_record({key.strip().rsplit(" ", 1)[-1]: value.strip() for key, _, value in pairs})


def _of_record(record: Any) -> bytes:
    if not isinstance(record, Mapping):
        return GARBAGE
    try:
        if "orig.ip.protocol" in record or "orig.ip.saddr.str" in record:
            return _of_ulogd(record)
        return _of_message(record)
    except (ValueError, OverflowError, KeyError, TypeError):
        return GARBAGE


def _of_ulogd(record: Mapping[str, Any]) -> bytes:
    number = protocol_number(str(record["orig.ip.protocol"]))
    identifier = str(record.get("icmp.id", 0)) if number in {1, 58} else ""
    original, reply = (
        Tuple(str(record[f"{way}.ip.saddr.str"]), str(record[f"{way}.ip.daddr.str"]),
              _port(record.get(f"{way}.l4.sport")), _port(record.get(f"{way}.l4.dport")), identifier)
        for way in ("orig", "reply")
    )  # fmt: skip
    event = _EVENTS.get(str(record.get("ct.event", "")), "")
    return line(number, original, reply, event=event, time=_time(record), zone=_port(record.get("ct.zone")))


def _port(value: Any) -> str:
    return str(value) if isinstance(value, int | str) and str(value).isdecimal() else ""


def _of_message(record: Mapping[str, Any]) -> bytes:
    """The line of conntrack that some key holds, with the record's time unless it has one of its own."""
    text = next(_messages(record, 0), None)
    if text is None:
        return b"\n"
    found = FLOW.search(text)
    if found is None and b"ORIG: SRC=" not in text:
        return GARBAGE
    time = None if found and found[1] else _time(record)
    stamp = b"[%.6f] " % time if time is not None and 0 <= time < _LATEST else b""
    body = text[found.start() :] if found else text
    return stamp + body.replace(b"\n", b" ").rstrip(b"\r ") + b"\n"


def _messages(value: Any, depth: int) -> Iterator[bytes]:
    """Texts within a record that may be a line of conntrack's."""
    if isinstance(value, str):
        if "src=" in value or "ORIG: SRC=" in value:
            yield value.strip().encode("utf-8", "replace")
    elif isinstance(value, Mapping) and depth < _DEEPEST:
        for one in value.values():
            yield from _messages(one, depth + 1)
    elif isinstance(value, list) and depth < _DEEPEST:
        if value and all(isinstance(one, int) and 0 <= one < 256 for one in value):
            yield from _messages(bytes(value).decode("latin-1"), depth)  # journald's way with odd characters
        else:
            for one in value:
                yield from _messages(one, depth + 1)


def _time(record: Mapping[str, Any]) -> float | None:
    if "flow.start.sec" in record:
        return float(record["flow.start.sec"]) + float(record.get("flow.start.usec", 0)) / 1e6
    if "oob.time.sec" in record:
        return float(record["oob.time.sec"]) + float(record.get("oob.time.usec", 0)) / 1e6
    for key in _TIMES:
        if key in record:
            return _seconds(record[key])
    return None


def _seconds(value: Any) -> float | None:
    text = str(value).strip()
    for read in (float, iso, classic):
        try:
            seconds = read(text.encode())
        except ValueError:
            continue
        return next((seconds / unit for above, unit in _UNITS if seconds > above), seconds)
    return None
