# SPDX-License-Identifier: Apache-2.0
"""Times as logs write them, as seconds.

Only differences count, so a time without a zone is taken as if it were in UTC, and a date without a year gets
one such that the log goes on and does not jump.
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]

_MONTHS = {
    name: number
    for number, name in enumerate(
        (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"), 1
    )
}
_DAY = 86_400.0
_CACHED = 1 << 16
_MICRO_DIGITS = 6
_STAMP = len("1780000000.123456")
_POINT = 10
_WEIGHTS = np.array([10.0**power for power in (*range(9, -1, -1), 0, *range(-1, -7, -1))])
_CLASSIC = re.compile(
    rb"(?:[A-Z][a-z]{2} )?([A-Z][a-z]{2}) +(\d{1,2}) (?:(\d{4}) )?"
    rb"(\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?(?: (\d{4}))?"
)
_ISO = re.compile(
    rb"(\d{4})[-/.](\d\d)[-/.](\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?(Z|[ ]?[+-]\d\d(?::?\d\d)?)?"
)


class Clock:
    """Texts to seconds, NaN for what is no time; remembers the recent ones.

    Args:
        read: one text to seconds, raising ValueError where it is no time.
        turn: seconds after which the texts begin again (a day, a year), 0 where they never do.
    """

    def __init__(self, read: Callable[[bytes], float], turn: float = 0.0) -> None:
        self._known = _Known(read)
        self._turn = turn
        self._last = np.nan
        self._turns = 0.0

    def seconds(self, texts: Sequence[bytes]) -> Seconds:
        """The seconds of each text, shape (n,)."""
        seconds: Seconds = np.fromiter(map(self._known.__getitem__, texts), np.float64, len(texts))
        return self._unwrapped(seconds) if self._turn else seconds

    def _unwrapped(self, seconds: Seconds) -> Seconds:
        """Adds a turn wherever the texts begin again, and takes one away where they go back over that."""
        timed = np.flatnonzero(~np.isnan(seconds))
        if not len(timed):
            return seconds
        some = seconds[timed]
        before = np.concatenate(([some[0] if np.isnan(self._last) else self._last], some[:-1]))
        jumps = some - before
        turns = self._turns + np.cumsum((jumps < -self._turn / 2).astype(int) - (jumps > self._turn / 2))
        self._last, self._turns = float(some[-1]), float(turns[-1])
        result = seconds.copy()
        result[timed] = some + turns * self._turn
        return result


class _Known(dict[bytes, float]):
    def __init__(self, read: Callable[[bytes], float]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, text: bytes) -> float:
        try:
            seconds = self._read(text)
        except (ValueError, OverflowError):
            seconds = np.nan
        if len(self) >= _CACHED:
            self.clear()
        self[text] = seconds
        return seconds


def stamps(texts: Sequence[bytes]) -> Seconds:
    """Conntrack's own ``SECONDS.MICROSECONDS``, NaN for an empty text.

    Before 1.4 the microseconds had no leading zeros: ``.52`` is 52 of them.
    """
    if set(map(len, texts)) == {_STAMP}:
        characters = np.frombuffer(b"".join(texts), np.uint8).reshape(-1, _STAMP)
        if (characters[:, _POINT] == ord(".")).all():
            seconds: Seconds = (characters - 48.0 * (np.arange(_STAMP) != _POINT)) @ _WEIGHTS - ord(".")
            return seconds
    return np.array([_stamp(text) for text in texts], np.float64)


def _stamp(text: bytes) -> float:
    whole, _, fraction = text.partition(b".")
    if not whole:
        return np.nan
    unit = max(len(fraction), _MICRO_DIGITS)
    return int(whole) + int(fraction or b"0") / 10.0**unit


def number(text: bytes) -> float:
    """Plain seconds, with a fraction or without."""
    return float(text)


def iso(text: bytes) -> float:
    """``2026-05-28T20:26:40.506943+00:00`` and its relatives."""
    found = _ISO.fullmatch(text)
    if not found:
        raise ValueError
    year, month, day, hour, minute, second, fraction, zone = found.groups()
    at = datetime(int(year), int(month), int(day), int(hour), int(minute), tzinfo=UTC).timestamp()
    return at + int(second) + _fraction(fraction) - _offset(zone)


def classic(text: bytes) -> float:
    """``May 28 20:26:40``, with a year and a day of the week or without; without a year it is this one."""
    found = _CLASSIC.fullmatch(text)
    if not found:
        raise ValueError
    month, day, early, hour, minute, second, fraction, late = found.groups()
    year = int(early or late or time.gmtime().tm_year)
    first = datetime(year, _month(month), 1, int(hour), int(minute), tzinfo=UTC).timestamp()
    return first + (int(day) - 1) * _DAY + int(second) + _fraction(fraction)


def time_of_day(text: bytes) -> float:
    """``20:26:40``."""
    hour, minute, rest = text.replace(b",", b".").split(b":")
    return int(hour) * 3600.0 + int(minute) * 60.0 + float(rest)


def _month(name: bytes) -> int:
    if name not in _MONTHS:
        raise ValueError
    return _MONTHS[name]


def _fraction(text: bytes | None) -> float:
    return float(b"0." + text) if text else 0.0


def _offset(zone: bytes | None) -> float:
    if not zone or zone == b"Z":
        return 0.0
    zone = zone.strip()
    digits = zone[1:].replace(b":", b"")
    seconds = int(digits[:2]) * 3600.0 + int(digits[2:] or b"0") * 60.0
    return -seconds if zone[:1] == b"-" else seconds


def classic_clock() -> Clock:
    """Dates without a year, which are read as of this one."""
    year = time.gmtime().tm_year
    return Clock(classic, (366 if calendar.isleap(year) else 365) * _DAY)


def day_clock() -> Clock:
    """Times without a date."""
    return Clock(time_of_day, _DAY)
