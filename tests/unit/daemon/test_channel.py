# SPDX-License-Identifier: Apache-2.0
"""What one end says the other hears, however it is cut; neither can take the other's memory or time."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.base.family import Family
from detector.daemon import channel as room
from detector.daemon.channel import Closed, Stalled, TooLong, aggregator_end, sensor_end
from detector.daemon.codec import Malformed
from detector.daemon.messages import Member, Peers, Released, State, Stop, ToAggregator, ToSensor

SLOTS = 4096
STATE = State("", True, 0, 0, {}, 0, 0)
WAITS = st.text(max_size=40).map(lambda text: State(text, True, 0, 0, {}, 0, 0))
Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends of a socket pair: the sensor's and the aggregator's."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def said(messages: list[ToAggregator]) -> bytes:
    """The bytes of these messages."""
    one, other = socket.socketpair()
    with one, other:
        end = sensor_end(one, SLOTS)
        for message in messages:
            end.send(message)
        one.shutdown(socket.SHUT_WR)
        found = b""
        while chunk := other.recv(1 << 16):
            found += chunk
        return found


@settings(deadline=None, max_examples=50)
@given(st.lists(WAITS, max_size=6), st.data())
def test_messages_arrive_whole_however_they_are_cut(
    messages: list[ToAggregator], data: st.DataObject
) -> None:
    """Messages that come in pieces of any size are heard once each, in order."""
    raw = said(messages)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=10)))
    one, other = socket.socketpair()
    with one, other, pytest.MonkeyPatch.context() as patched:
        patched.setattr(room, "_PATIENCE", 0.0)
        end = aggregator_end(other, SLOTS)
        heard: list[ToAggregator] = []
        for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            one.sendall(raw[start:stop])
            heard += end.receive()
        assert heard == messages


def test_the_rest_of_a_message_is_waited_for(ends: Ends) -> None:
    """A message of which one half is here is not left lying, though nothing was to be waited for."""
    one, other = ends
    raw = said([STATE])
    one.sendall(raw[:9])
    rest = threading.Timer(0.05, lambda: one.sendall(raw[9:]))
    rest.start()
    assert list(aggregator_end(other, SLOTS).receive(0.0)) == [STATE]
    rest.join()


def test_half_a_message_holds_nobody_up(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends half a message and no more is left after a moment; how long it lies there can be asked."""
    monkeypatch.setattr(room, "_PATIENCE", 0.05)
    one, other = ends
    end = aggregator_end(other, SLOTS)
    assert end.stalled() == 0.0
    one.sendall(said([STATE])[:9])
    begun = time.monotonic()
    assert list(end.receive(0.0)) == []
    assert list(end.receive(0.0)) == []
    assert time.monotonic() - begun < 5
    assert end.stalled() > 0.05
    one.sendall(said([STATE])[9:])
    assert list(end.receive(0.0)) == [STATE]
    assert end.stalled() == 0.0


def test_a_message_can_be_larger_than_any_buffer(ends: Ends) -> None:
    """Thousands of slots arrive as they were."""
    message = Peers(tuple(Member(slot, Family.IPV4, False, "x" * 60) for slot in range(20_000)), ())
    one, other = sensor_end(ends[0], 20_000), aggregator_end(ends[1], 20_000)
    sender = threading.Thread(target=one.send, args=(message,))
    sender.start()
    heard: list[ToAggregator] = []
    while not heard:
        heard += other.receive(10.0)
    assert heard == [message]
    sender.join()


def test_two_ends_that_both_say_much_do_not_wait_for_each_other(ends: Ends) -> None:
    """The aggregator posts more than the buffers hold while the sensor does so, and both are heard."""
    many = 60_000
    one, other = sensor_end(ends[0], many), aggregator_end(ends[1], many)
    large = Peers(tuple(Member(slot, Family.IPV4, False, "x" * 60) for slot in range(many)), ())
    answer = Released(tuple(range(many)))
    other.post(answer)
    assert other.is_posting
    sender = threading.Thread(target=one.send, args=(large,), daemon=True)
    sender.start()
    heard: list[ToAggregator] = []
    while not heard:
        heard += other.receive(10.0)
    sender.join(10)
    back: list[ToSensor] = []
    while not back:
        other.flush()
        back += one.receive(0.1)
    assert (heard, back) == ([large], [answer])
    assert not other.is_posting


def test_what_was_said_before_the_end_is_heard(ends: Ends) -> None:
    """The last words of an end that is gone come before the news that it is gone."""
    one, other = ends
    sensor_end(one, SLOTS).send(Stop())
    one.close()
    heard = aggregator_end(other, SLOTS).receive()
    assert next(heard) == Stop()
    with pytest.raises(Closed, match="the sensor has ended"):
        next(heard)


def test_a_closed_end_is_noticed_by_who_sends(ends: Ends) -> None:
    """Sending to an end that is gone says which process has ended; a last word to it is no error."""
    one, other = ends
    other.close()
    with pytest.raises(Closed, match="the aggregator has ended"):
        sensor_end(one, SLOTS).send(STATE)
    sensor_end(one, SLOTS).finish(Stop())


def test_a_last_word_follows_what_was_begun(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that was interrupted on its way is ended before the last one, so that nothing is garbled."""
    monkeypatch.setattr(room, "_SEND_PATIENCE", 0.0)
    monkeypatch.setattr(room, "_PATIENCE", 0.01)
    one, other = sensor_end(ends[0], 60_000), aggregator_end(ends[1], 60_000)
    large = Peers(tuple(Member(slot, Family.IPV4, False, "x" * 60) for slot in range(60_000)), ())
    with pytest.raises(Stalled, match="the aggregator takes in nothing"):
        one.send(large)
    heard: list[ToAggregator] = []
    while len(heard) < 2:
        heard += other.receive(0.0)
        if len(heard) == 0:
            one.flush()
        elif len(heard) == 1:
            one.finish(Stop())
    assert heard == [large, Stop()]


def test_who_takes_in_nothing_is_not_waited_for(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither end keeps more for the other than one message beyond the longest."""
    monkeypatch.setattr(room, "_SEND_PATIENCE", 0.1)
    many = 60_000
    sensor, aggregator = sensor_end(ends[0], many), aggregator_end(ends[1], many)
    with pytest.raises(Stalled, match="the sensor takes in nothing"):
        for _ in range(100):
            aggregator.post(Released(tuple(range(many))))
    large = Peers(tuple(Member(slot, Family.IPV4, False, "x" * 60) for slot in range(many)), ())
    with pytest.raises(Stalled, match="the aggregator takes in nothing"):
        sensor.send(large)


def test_a_message_of_just_the_limit_fits_and_one_byte_more_does_not(ends: Ends) -> None:
    """Who sends too much is told so before anything is sent, with both numbers."""
    one, other = sensor_end(ends[0], SLOTS), aggregator_end(ends[1], SLOTS)
    limit = room.to_aggregator(SLOTS).limit
    empty = len(said([STATE])) - 4
    fits = State("x" * (limit - empty), True, 0, 0, {}, 0, 0)
    sender = threading.Thread(target=one.send, args=(fits,))
    sender.start()
    heard: list[ToAggregator] = []
    while not heard:
        heard += other.receive(10.0)
    sender.join()
    assert heard == [fits]
    with pytest.raises(TooLong, match=f"State.* has {limit + 1} bytes, more than the {limit} that fit"):
        one.send(State(fits.waiting + "x", True, 0, 0, {}, 0, 0))
    one.send(STATE)
    assert list(other.receive(1.0)) == [STATE]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (struct.pack(">I", 1 << 31), "begins a message of 2147483648 bytes"),
        (struct.pack(">I", room.to_sensor(SLOTS).limit + 1), "begins a message of"),
        (struct.pack(">I", 7) + b"Stop {}", "of no kind that it may say"),
        (struct.pack(">I", 2) + b"\xff\xfe", "of no kind"),
        (struct.pack(">I", 0), "of no kind"),
        (struct.pack(">I", 11) + b"Released {}", r"is no message \(Released: an object with slots"),
    ],
)
def test_the_sensor_refuses_what_is_no_message(ends: Ends, raw: bytes, reason: str) -> None:
    """An aggregator that was taken over can end the service, with a line that says why, and no more."""
    one, other = ends
    other.sendall(raw)
    with pytest.raises(Malformed, match=reason):
        list(sensor_end(one, SLOTS).receive(1.0))


def test_a_flood_is_cut_into_helpings(ends: Ends) -> None:
    """Who says thousands of things at once does not keep the other from its own work."""
    one, other = ends

    def flood() -> None:
        for _ in range(5000):
            sensor_end(one, SLOTS).send(STATE)

    sender = threading.Thread(target=flood)
    sender.start()
    end, heard, most = aggregator_end(other, SLOTS), 0, 0
    while heard < 5000:
        helping = len(list(end.receive(1.0)))
        heard, most = heard + helping, max(most, helping)
    sender.join()
    assert most <= 256


def test_a_taken_over_aggregator_cannot_take_the_sensors_memory(ends: Ends) -> None:
    """Half a gigabyte without an end is refused after a megabyte, and in a moment."""
    one, other = ends
    end = sensor_end(one, SLOTS)

    def flood() -> None:
        try:
            for _ in range(500):
                other.sendall(b"\x00\x00\xff\xff" + b"x" * (1 << 20))
        except OSError:
            pass

    sender = threading.Thread(target=flood, daemon=True)
    sender.start()
    with pytest.raises(Malformed):
        while True:
            list(end.receive(1.0))
            assert len(end._buffer) < 2 << 20
    one.close()
    sender.join(10)
