# SPDX-License-Identifier: Apache-2.0
"""The process that reads the rules of iptables-legacy, and the sensor's end, with a tool that is made up."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest

from detector.base.errors import HostError, NotYet
from detector.base.family import Family
from detector.daemon import legacy
from detector.nat.live import LegacySaves


@contextmanager
def answering(save: LegacySaves) -> Iterator[socket.socket]:
    """The sensor's end of the socket to a process that answers by `save`."""
    ours, theirs = socket.socketpair()
    thread = Thread(target=legacy.answer, args=(theirs, save, 9.0))
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(10)
        theirs.close()
        assert not thread.is_alive()


def test_each_family_is_answered_again_and_again() -> None:
    """What the tool prints comes back whole, however long, with the time that the process allows."""

    def save(family: Family, timeout: float) -> str:
        return f"{family} {timeout} " + "ä" * 300_000

    with answering(save) as end:
        reader = legacy.Reader(end)
        for family in (*Family, *Family):
            assert reader(family, 10) == save(family, 9.0)


@pytest.mark.parametrize("kind", [HostError, NotYet])
def test_an_error_comes_back_as_it_is(kind: type[HostError]) -> None:
    """With what happened and what to do; the next question is answered as if nothing had been."""
    errors: list[HostError] = [kind("it failed", "look at it")]

    def save(_family: Family, _timeout: float) -> str:
        if errors:
            raise errors.pop()
        return "*nat"

    with answering(save) as end:
        reader = legacy.Reader(end)
        with pytest.raises(HostError) as caught:
            reader(Family.IPV6, 10)
        assert type(caught.value) is kind
        assert (caught.value.what, caught.value.hint) == ("it failed", "look at it")
        assert reader(Family.IPV6, 10) == "*nat"


@pytest.mark.parametrize("word", [b"", b"x", b"\0"])
def test_anything_else_ends_it(word: bytes) -> None:
    """One byte that names no family, or the end: nothing is run."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(word)
        ours.shutdown(socket.SHUT_WR)
        legacy.answer(theirs, lambda *_: pytest.fail("it ran"), 1.0)
        ours.close()


@pytest.mark.parametrize(
    "said",
    [b"", b"s", struct.pack("<cI", b"s", 5) + b"four", struct.pack("<cI", b"s", 1) + b"\xff"],
    ids=["nothing", "half a head", "half a text", "no text"],
)
def test_a_process_that_is_gone_or_strange_is_not_asked_again(said: bytes) -> None:
    """An answer that is no answer: from then on it is said that nothing reads them."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        reader = legacy.Reader(ours)
        for _ in range(2):
            with pytest.raises(HostError, match="restart the service"):
                reader(Family.IPV4, 1)
    assert ours.fileno() == -1


@pytest.mark.parametrize(("size", "accepted"), [(20, True), (21, False)])
def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch, size: int, accepted: bool) -> None:
    """One byte more than the most is not taken."""
    monkeypatch.setattr(legacy, "_MOST", 20)
    with answering(lambda *_: "a" * size) as end:
        reader = legacy.Reader(end)
        if accepted:
            assert reader(Family.IPV4, 5) == "a" * size
        else:
            with pytest.raises(HostError, match="is gone"):
                reader(Family.IPV4, 5)


def test_one_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sensor goes on."""
    monkeypatch.setattr(legacy, "_GRACE", 0.1)
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(HostError, match="is gone"):
        legacy.Reader(ours)(Family.IPV4, 0.1)


def test_where_nothing_reads_it_says_what_to_do() -> None:
    """The tool's name, and to restart."""
    with pytest.raises(HostError, match=r"ip6tables-legacy.*restart it"):
        legacy.unread(Family.IPV6, 1)
