# SPDX-License-Identifier: Apache-2.0
"""What one end says the other hears, however it is cut on the way; an end that is gone is said."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.daemon.channel import Channel, Closed

MESSAGES = st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=40), max_size=4), max_size=8)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a socket pair."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@given(MESSAGES, st.data())
def test_messages_arrive_whole_however_they_are_cut(
    messages: list[dict[str, str]], data: st.DataObject
) -> None:
    """Messages that come in pieces of any size are heard once each, in order, line breaks in them or not."""
    raw = b"".join(json.dumps(message).encode() + b"\n" for message in messages)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=10)))
    one, other = socket.socketpair()
    with one, other:
        channel = Channel(other, "sensor")
        heard = []
        for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            one.sendall(raw[start:end])
            if raw[:end].endswith(b"\n"):  # else the channel would wait for the rest
                heard += list(channel.receive())
        assert heard == messages


def test_half_a_message_is_waited_for(ends: tuple[socket.socket, socket.socket]) -> None:
    """A message of which one half is here is not left lying, though nothing was to be waited for."""
    one, other = ends
    one.sendall(b'{"kind":')
    rest = threading.Timer(0.05, lambda: one.sendall(b'"stop"}\n'))
    rest.start()
    assert list(Channel(other, "sensor").receive(0.0)) == [{"kind": "stop"}]
    rest.join()


def test_a_message_can_be_larger_than_any_buffer(ends: tuple[socket.socket, socket.socket]) -> None:
    """Ten megabytes arrive as they were."""
    message = {"kind": "peers", "added": ["x" * 1000] * 10_000}
    one, other = (Channel(end, "other") for end in ends)
    sender = threading.Thread(target=one.send, args=(message,))
    sender.start()
    assert list(other.receive(10.0)) == [message]
    sender.join()


def test_two_ends_that_both_send_do_not_wait_for_each_other(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """Both ends send more than the buffers hold before either listens, and both are heard."""
    large = {"slots": list(range(300_000))}
    one, other = (Channel(end, "other") for end in ends)
    heard: list[object] = []

    def talk(channel: Channel) -> None:
        channel.send(large)
        heard.append(next(channel.receive(10.0)))

    talker = threading.Thread(target=talk, args=(one,), daemon=True)
    talker.start()
    talk(other)
    talker.join(10)
    assert heard == [large, large]


def test_what_was_said_before_the_end_is_heard(ends: tuple[socket.socket, socket.socket]) -> None:
    """The last words of an end that is gone come before the news that it is gone."""
    one, other = ends
    Channel(one, "aggregator").send({"kind": "stop"})
    one.close()
    heard = Channel(other, "sensor").receive()
    assert next(heard) == {"kind": "stop"}
    with pytest.raises(Closed, match="the sensor has ended"):
        next(heard)


def test_a_closed_end_is_noticed_by_who_sends(ends: tuple[socket.socket, socket.socket]) -> None:
    """Sending to an end that is gone says which process has ended; a last word to it is no error."""
    one, other = ends
    other.close()
    channel = Channel(one, "aggregator")
    with pytest.raises(Closed, match="the aggregator has ended"):
        channel.send({"kind": "state"})
    Channel(one, "aggregator").finish({"kind": "stop"})


class _Interrupted(Exception):
    pass


def test_nothing_follows_half_a_message(ends: tuple[socket.socket, socket.socket]) -> None:
    """After a message that was interrupted on its way, the last word is left out instead of garbled."""
    one, other = ends

    class Stuck(socket.socket):
        def send(self, _data: object, _flags: int = 0) -> int:
            raise _Interrupted

    with Stuck(fileno=one.detach()) as stuck:
        channel = Channel(stuck, "aggregator")
        with pytest.raises(_Interrupted):
            channel.send({"kind": "state"})
        channel.finish({"kind": "stop"})
    assert other.recv(100) == b""
