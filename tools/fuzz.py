# SPDX-License-Identifier: Apache-2.0
"""Tries readers of what others write with what nobody would: ``python -m tools.fuzz [SECONDS]``.

Each reader starts from its corpus (tests/corpus/NAME); inputs that reach lines which none before has reached
join it for the run. A reader may refuse with an error of ours. Any other error, more than 5 s for one input,
or 200 MB more memory is a finding, and its input is printed.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, get_args

from detector.base.errors import ExitprintError
from detector.config.document import parse as read_document
from detector.daemon import codec, messages
from detector.daemon.memory import resident_bytes
from detector.daemon.notices import is_change
from detector.nat.iptables import read_iptables_save
from detector.nat.nftables import read_nft_json
from detector.publish.http.request import Refused, head_of, parse
from detector.publish.inspect import socket as inspect
from detector.wireguard.interfaces import collect_peers

CORPUS = Path(__file__).parents[1] / "tests" / "corpus"
SECONDS = 60.0  # for each reader
MAX_SECONDS, MAX_GROWTH = 5.0, 200 << 20
_MAX_BYTES = 1 << 16
_ODD = (b"\0", b"\xff", b"-1", b"99999999999999999999", b'"', b"[" * 64, b"\n")

Reader = Callable[[bytes], object]
_KINDS: tuple[type, ...] = (*get_args(messages.ToAggregator), *get_args(messages.ToSensor))


class Finding(Exception):
    """What a reader did with an input that it must not do."""


def _request(data: bytes) -> None:
    with suppress(Refused):
        if (end := head_of(data)) is not None:
            parse(data[:end])


def _message(data: bytes) -> None:
    name, _, told = data.partition(b" ")
    for kind in _KINDS:
        if kind.__name__.encode() == name:
            codec.decode(kind, told)


def _netlink(data: bytes) -> None:
    is_change(data)
    collect_peers(memoryview(data), {})


READERS: dict[str, Reader] = {
    "request": _request,
    "message": _message,
    "inspect": inspect._parsed,
    "netlink": _netlink,
    "iptables": lambda data: read_iptables_save(data.decode(errors="replace")),
    "nft": lambda data: read_nft_json(data.decode(errors="replace")),
    "document": lambda data: read_document(Path("x"), data.decode(errors="replace"), "relay: a"),
}


def fuzz(name: str, seconds: float, seed: int, least: int = 0) -> int:
    """Try one reader for so long, and at least so many inputs; returns how many were tried.

    Raises:
        Finding: it does what it must not do.
    """
    drawn, reader = random.Random(seed), READERS[name]  # noqa: S311
    corpus = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    reached: set[tuple[Any, int]] = set()
    for data in corpus:
        _tried(reader, data, reached)
    started, memory, tried = time.monotonic(), resident_bytes(), len(corpus)
    while time.monotonic() - started < seconds or tried < least:
        data = _changed(drawn, corpus)
        if _tried(reader, data, reached):
            corpus.append(data)
        tried += 1
        if resident_bytes() - memory > MAX_GROWTH:
            raise Finding(f"{name}: memory grew by more than {MAX_GROWTH >> 20} MB: {data[:200]!r}")
    return tried


def _tried(reader: Reader, data: bytes, reached: set[tuple[Any, int]]) -> bool:
    """Give one input to a reader; returns whether it has reached a new line of ours."""
    before, begun = len(reached), time.monotonic()

    def lines(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            reached.add((frame.f_code, frame.f_lineno))
        return lines

    def calls(frame: FrameType, _event: str, _argument: object) -> Any:
        return lines if "/detector/" in frame.f_code.co_filename else None

    traced = sys.gettrace()
    sys.settrace(calls)
    try:
        reader(data)
    except ExitprintError:
        pass
    except Exception as error:
        raise Finding(f"{type(error).__name__} on {data!r}") from error
    finally:
        sys.settrace(traced)
    if (took := time.monotonic() - begun) > MAX_SECONDS:
        raise Finding(f"{took:.1f} s on {data[:200]!r}")
    return len(reached) > before


def _changed(drawn: random.Random, corpus: list[bytes]) -> bytes:
    """One of the corpus with some bytes of it changed, left out, doubled, or taken from another."""
    data = bytearray(drawn.choice(corpus))
    for _ in range(drawn.choice((1, 1, 2, 4, 16))):
        at = drawn.randint(0, len(data))
        end = min(len(data), at + drawn.choice((0, 1, 2, 8, 64)))
        match drawn.randrange(5):
            case 0:
                data[at:end] = drawn.randbytes(drawn.choice((1, 2, 8)))
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end] * drawn.choice((1, 2, 50, 1000))
            case 3:
                other = drawn.choice(corpus)
                start = drawn.randint(0, len(other))
                data[at:end] = other[start : start + drawn.choice((1, 8, 64, 512))]
            case _:
                data[at:end] = drawn.choice(
                    (b"\0", b"\xff", b"-1", b"99999999999999999999", b'"', b"[" * 64, b"\n")
                )
    return bytes(data[:_MAX_BYTES])


def main(arguments: list[str]) -> int:
    """Try every reader; returns 1 where there is a finding."""
    seconds = float(arguments[0]) if arguments else SECONDS
    seed = time.time_ns()
    status = 0
    for name in READERS:
        try:
            print(f"{name}: {fuzz(name, seconds, seed):,} inputs")
        except Finding as finding:
            print(f"{name}: FOUND {finding} (seed {seed})")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
