# SPDX-License-Identifier: Apache-2.0
"""conntrack's own lines, and what programs that keep lines write before them.

    PREFIX  [SECONDS.MICRO]  [EVENT]  [ID]  [ipv4 2]  PROTOCOL NUMBER  WORDS...  src=...

Only the time of a prefix matters. What follows ``src=`` is the same in every form, see `tuples`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detector.conntrack.clocks import Clock, classic_clock, day_clock, iso, number

_EVENT = rb"\[(NEW|UPDATE|DESTROY)\]"
_STAMP = rb"\[[ ]{0,16}(\d{1,12}\.\d{1,9})[ ]{0,16}\]"
_PROTOCOL = rb"(?:ipv[46][\t ]{1,16}\d{1,3}[\t ]{1,16})?(?=[a-z])[\w-]{1,24}[\t ]{1,16}(\d{1,3})"
# Timeout and TCP state, or what /proc says of GRE; no colon and no bracket, so no date is taken for one.
# A run of words stops at the first equals sign by itself, so nothing is tried twice.
_REST = rb"[\t ][\t \w,-]*(?:(?<=timeout)=\d{1,9}[\t \w,-]*){0,2}(?<=[\t ]src)=[^\n]*"
_BODY = (
    rb"[\t ]{0,16}(?:"
    + _STAMP
    + rb"[\t ]{0,16})?(?:"
    + _EVENT
    + rb"[\t ]{1,16})?(?:\d{5,20}[\t ]{1,16})?"
    + _PROTOCOL
    + _REST
)
# Host, program, facility, time zone: words that are not the line itself.
# The usual two come first, as that is quicker.
_WHO = (
    rb"(?:[ ]\S{1,255}[ ]\S{1,255}:[ ](?=[\[a-z ])"
    rb"|(?:[\t ]{1,16}(?!\[(?:NEW|UPDATE|DESTROY|[ ]{0,16}\d{1,12}\.)|(?:src|dst)=)[^\s]{1,255}){0,4}?"
    rb"(?:[\t ]{0,16}(?=\[)|[\t ]{1,16}))"
)
_PRIORITY = rb"(?:<\d{1,3}>)?"
_ISO = rb"\d{4}[-/.]\d\d[-/.]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[ ]?[+-]\d\d(?::?\d\d)?)?"
_CLOCK = rb"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
_CLASSIC = rb"(?:[A-Z][a-z]{2}[ ])?[A-Z][a-z]{2}[ ]{1,2}\d{1,2}[ ](?:\d{4}[ ])?" + _CLOCK + rb"(?:[ ]\d{4})?"
_STRUCTURED = rb"(?:-|(?:\[(?:[^\]\\\n]|\\[^\n])*\])+)"


def _no_clock() -> Clock:
    return Clock(number)


@dataclass(frozen=True, slots=True)
class LineForm:
    """What stands before conntrack's own text in each line.

    Attributes:
        name: for people, empty where nothing does.
        head: matches a line; groups: time of the prefix, conntrack's own stamp, event, protocol's number.
        clock: a clock that reads the time of the prefix.
    """

    name: str
    head: re.Pattern[bytes]
    clock: Callable[[], Clock] = _no_clock

    def matches(self, lines: Sequence[bytes]) -> int:
        """How many of some lines are in this form."""
        return sum(self.head.match(line) is not None for line in lines)


def _form(name: str, prefix: bytes, clock: Callable[[], Clock] = _no_clock, body: bytes = _BODY) -> LineForm:
    return LineForm(name, re.compile(b"^" + prefix + body, re.MULTILINE), clock)


# The beginning is anything; so an event or a protocol's own name has to follow, lest a date be taken for one.
_SURE = (
    rb"(?:" + _STAMP + rb"[\t ]{0,16})?"
    rb"(?:\[(NEW|UPDATE|DESTROY)\][\t ]{1,16}(?:\d{5,20}[\t ]{1,16})?"
    rb"(?:ipv[46][\t ]{1,16}\d{1,3}[\t ]{1,16})?(?=[a-z])[\w-]{1,24}"
    rb"|(?:ipv[46][\t ]{1,16}\d{1,3}[\t ]{1,16})?"
    rb"(?:tcp|udp|udplite|icmp|icmpv6|ipv6-icmp|sctp|dccp|gre|esp|ah|unknown))[\t ]{1,16}(\d{1,3})" + _REST
)
FLOW = re.compile(rb"(?<![\w.-])" + _SURE)
"""A flow anywhere in a text; groups: conntrack's own stamp, event, protocol's number."""

PLAIN = _form("", rb"()")
LINE_FORMS = (
    PLAIN,
    _form("syslog", _PRIORITY + rb"\[?(" + _CLASSIC + rb")\]?:?" + _WHO, classic_clock),
    _form("syslog, RFC 5424", _PRIORITY + rb"\d{1,2}[ ](" + _ISO + rb"|-)[ ](?:[^\s]+[ ]){4}" + _STRUCTURED
          + rb"(?:[ ](?:\xef\xbb\xbf)?)?", lambda: Clock(iso)),
    _form("syslog, ISO 8601", _PRIORITY + rb"\[?(?:[A-Z][a-z]{2}[ ])?(" + _ISO + rb")\]?:?" + _WHO,
          lambda: Clock(iso)),
    _form("seconds since 1970", rb"(\d{9,11}(?:\.\d{1,9})?):?" + _WHO, lambda: Clock(number)),
    _form("journalctl, seconds since boot",
          rb"\[[ ]{0,16}(\d{1,9}\.\d{1,9})[ ]{0,16}(?:<[^>\n]{0,40}>)?\]" + _WHO, lambda: Clock(number)),
    _form("time of day", rb"\[?(" + _CLOCK + rb")\]?:?" + _WHO, day_clock),
)  # fmt: skip
UNKNOWN_PREFIX = _form(
    "lines that begin in a way that is not known", rb"(?:[^\n]{0,2000}?(?<![\w.-]))()", body=_SURE
)
