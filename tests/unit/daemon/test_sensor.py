# SPDX-License-Identifier: Apache-2.0
"""The sensor with its edges in hand: what it writes and says, in which order, and what a failure leaves."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from detector.base.errors import HostError, NotYet, UsageError
from detector.base.family import Family
from detector.base.ranges import AddressRange
from detector.config.canaries import Canaries, Canary
from detector.config.model import Config, Tables
from detector.config.tls import WebConfig
from detector.daemon import sensor as room
from detector.daemon.channel import Closed, TooLong, aggregator_end, sensor_end
from detector.daemon.codec import Malformed, encode
from detector.daemon.messages import NewConfig, Peers, Released, Rules, State
from detector.daemon.sensor import Edges, Sensor
from detector.nat.mapping import mapping_of
from detector.nat.model import rule_set
from tests.unit.daemon.fakes import GONE, Clock, KernelTables, Link, Relay

CONFIG = Config(relay="r", wireguard=("wg0",), tables=Tables(peers=4))
A, B, C = "10.0.0.1", "10.0.0.2", "fd00::3"


def mapping(first: str = "203.0.113.1", last: str = "203.0.113.8") -> Any:
    """A mapping with one pool."""
    return mapping_of(rule_set([], []), [AddressRange(ip_address(first), ip_address(last))])


class Bench:
    """A sensor, the aggregator's end of its channel, the kernel's tables and the relay."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.relay, self.tables, self.clock = Relay(), KernelTables(), Clock()
        self.link, self.other = Link.pair()
        relay = self.relay
        self.edges = Edges(self.tables, relay.votes, relay.rules, relay.read, self.clock, lambda: 99)
        self.it = Sensor(config, self.edges, self.link)
        self.it.slots.shuffle = lambda _: None

    def step(self) -> list[Any]:
        """One look; returns what was said."""
        self.link.sent.clear()
        self.it.step()
        return list(self.link.sent)

    def release(self, *slots: int) -> None:
        """The aggregator lets go of slots."""
        self.other.send(Released(slots))
        self.it.hear(0.0)


def kinds(messages: list[Any]) -> list[str]:
    """What kinds of messages these are."""
    return [type(one).__name__ for one in messages]


def test_the_first_look_tells_rules_peers_and_that_it_lives() -> None:
    """In this order, and the kernel counts for a peer only after the aggregator was told of it."""
    bench = Bench()
    bench.relay.mapping, bench.relay.peers = mapping(), {"a": [A], "b": [B, C]}
    known: list[int] = []
    bench.link.on_send = lambda _: known.append(len(bench.tables.peers))
    said = bench.step()
    assert kinds(said) == ["Rules", "Peers", "State"]
    rules, peers, state = said
    assert (rules.epoch, rules.added, rules.pools[0].ranges) == (1, (), (("203.0.113.1", "203.0.113.8"),))
    assert [one.slot for one in peers.added] == [0, 1, 2]
    assert known == [0, 0, 3]
    assert bench.tables.log == ["set 0", "set 1", "set 2", "tunnel 7"]
    assert (state.waiting, state.watching, state.resident, state.runs) == ("", True, 99, 7)
    assert state.held["addresses"] == 3
    assert kinds(bench.step()) == ["State"]


def test_no_message_holds_a_key_or_a_tunnel_address() -> None:
    """Whatever the sensor says."""
    bench = Bench()
    bench.relay.mapping, bench.relay.peers = mapping(), {"a": [A], "b": [B, C]}
    told = repr(bench.step())
    for secret in (A, B, C, "aaaa", "bbbb"):
        assert secret not in told


def test_who_leaves_is_erased_before_it_is_told() -> None:
    """The kernel forgets first; the slot is kept for a window, and another's only after it was released."""
    bench = Bench()
    bench.relay.mapping, bench.relay.peers = mapping(), {"a": [A], "b": [B]}
    bench.step()
    bench.relay.peers = {"b": [B]}
    known: list[int] = []
    bench.link.on_send = lambda _: known.append(len(bench.tables.peers))
    peers, _ = bench.step()
    assert (peers.added, peers.left, peers.retired, known[0]) == ((), (0,), (), 1)
    bench.clock.now += bench.it.config.window - 1
    assert kinds(bench.step()) == ["State"]
    bench.clock.now += 1
    peers, _ = bench.step()
    assert (peers.added, peers.left, peers.retired) == ((), (), (0,))
    bench.release(0)
    assert bench.it.slots.taken == 1


def test_an_address_that_comes_back_is_the_same_person() -> None:
    """Within the window it has its slot and its name again, also with another key."""
    bench = Bench()
    bench.relay.mapping, bench.relay.peers = mapping(), {"a": [A], "b": [B]}
    (rules, *_) = bench.step()
    name = next(one.pseudonym for one in bench.it.slots.slots() if one.number == 0)
    bench.relay.peers = {"b": [B]}
    bench.step()
    bench.relay.peers = {"b": [B], "c": [A]}
    peers, _ = bench.step()
    assert [(one.slot, one.pseudonym) for one in peers.added] == [(0, name)]
    assert len(bench.tables.peers) == 2
    assert rules


def test_a_moved_interface_is_written_and_not_told() -> None:
    """The slots stay, the aggregator need not know."""
    bench = Bench()
    bench.relay.mapping, bench.relay.peers = mapping(), {"a": [A]}
    bench.step()
    bench.relay.ifindex = 9
    assert kinds(bench.step()) == ["Missed", "State"]
    assert list(bench.tables.peers) == [(9, ip_address(A), 32)]
    assert bench.tables.tunnels == {9}


def test_new_rules_are_a_new_epoch_with_every_slot() -> None:
    """A change is told with all peers; rules that are read the same are none."""
    bench = Bench()
    bench.relay.mapping, bench.relay.peers = mapping(), {"a": [A]}
    bench.step()
    assert kinds(bench.step()) == ["State"]
    bench.relay.mapping = replace(mapping(last="203.0.113.9"), identity="other", exclusive=frozenset(Family))
    rules, _ = bench.step()
    assert (rules.epoch, [one.slot for one in rules.added]) == (2, [0])
    assert rules.exclusive == ("ipv4", "ipv6")
    assert bench.tables.pools == ((ip_address("203.0.113.1"), ip_address("203.0.113.9")),)


def test_rules_that_cannot_be_read_leave_what_was_known() -> None:
    """It is said what is waited for; a tool that fails once is no change of the rules."""
    bench = Bench()
    bench.relay.mapping, bench.relay.peers = mapping(), {"a": [A]}
    bench.step()
    bench.relay.mapping = HostError("nft failed")
    (state,) = bench.step()
    assert (state.waiting, state.watching) == ("nft failed", True)
    bench.relay.mapping = mapping()
    (state,) = bench.step()
    assert state.waiting == ""


def test_peers_that_cannot_be_read_are_not_watched() -> None:
    """The list fails, an interface refuses, an interface is missing: said, and what was written stands."""
    bench = Bench()
    bench.relay.mapping, bench.relay.peers = mapping(), {"a": [A]}
    bench.step()
    bench.relay.error = HostError("no list")
    assert bench.step()[-1].waiting == "no list"
    bench.relay.error, bench.relay.unread = None, {"wg0": NotYet("busy")}
    state = bench.step()[-1]
    assert (state.waiting, state.watching, bench.tables.tunnels) == ("busy", True, {7})
    bench.relay.unread, bench.relay.missing = {}, ("wg0",)
    peers, state = bench.step()
    assert (peers.left, state.watching, bench.tables.tunnels) == ((0,), False, set())


def test_a_full_table_is_told() -> None:
    """Who has no slot is counted, at each look until there is room."""
    bench = Bench()
    bench.relay.mapping = mapping()
    bench.relay.peers = {"a": [A, B, C, "10.0.0.9", "10.0.0.10", "10.0.0.11"]}
    assert bench.step()[-1].refused == 2
    bench.relay.peers = {"a": [A]}
    assert bench.step()[-1].refused == 0


def test_rules_that_do_not_fit_are_told_without_pools() -> None:
    """The evidence of before must not go on, whatever the size of the rules."""
    bench = Bench()
    bench.relay.mapping = mapping()

    def refuse(message: Any) -> None:
        if isinstance(message, Rules) and message.pools:
            raise TooLong("Rules has 9 bytes, more than the 8 that fit")

    bench.link.on_send = refuse
    rules, _ = bench.step()
    assert (rules.epoch, rules.pools) == (1, ())


def test_more_ranges_than_fit_and_rules_that_are_not_understood_do_not_stop_it() -> None:
    """Both are said in the log."""
    bench = Bench()
    bench.tables.fits = 0
    bench.relay.mapping = replace(mapping(), not_understood=(("ip nat post", "no idea"),))
    rules, _ = bench.step()
    assert rules.ambiguous == 1


@pytest.mark.parametrize("slots", [(0,), (1,), (7,), (-1,)])
def test_only_what_is_retired_is_released(slots: tuple[int, ...]) -> None:
    """An aggregator that lets go of others is not believed."""
    bench = Bench()
    bench.relay.peers = {"a": [A]}
    bench.step()
    with pytest.raises(Malformed, match="releases what it may not"):
        bench.release(*slots)


def test_a_lost_aggregator_ends_it() -> None:
    """Whoever sends or listens hears of it."""
    bench = Bench()
    bench.link.broken = GONE
    with pytest.raises(Closed):
        bench.it.step()
    with pytest.raises(Closed):
        bench.it.hear(0.0)


def test_a_reload_is_told_and_one_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Good: what can change does, what cannot is named. Bad: what was there stands, and that is told."""
    bench = Bench()
    bench.relay.mapping = mapping()
    bench.step()
    wanted = replace(CONFIG, exits=("203.0.113.7",), hook="kprobe", log_level="debug")
    monkeypatch.setattr(room, "read_config", lambda _: wanted)
    bench.link.sent.clear()
    bench.it.reload(Path("x"))
    (told,) = bench.link.sent
    assert isinstance(told, NewConfig)
    assert (told.config.exits, told.config.hook, told.reload.restart) == (("203.0.113.7",), "auto", ("hook",))
    assert kinds(bench.step()) == ["Rules", "State"]

    def broken(_: Path) -> Config:
        raise UsageError("x: no mapping")

    monkeypatch.setattr(room, "read_config", broken)
    bench.link.sent.clear()
    bench.it.reload(Path("x"))
    (told,) = bench.link.sent
    assert (told.reload.good, told.config) == (False, bench.it.config)


def test_a_reload_tells_no_address_of_a_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names only: the aggregator is told of no tunnel address, whoever it belongs to."""
    canaries = Canaries(("10.9.0.0/24",), (Canary("c1", ("10.9.0.1",)),))
    config = replace(CONFIG, canaries=canaries)
    bench = Bench(config)
    monkeypatch.setattr(room, "read_config", lambda _: config)
    bench.it.reload(Path("x"))
    (told,) = bench.link.sent
    assert told.config.canaries.names == ("c1",)
    assert b"10.9.0" not in encode(told)


class _Web:
    def __init__(self, *answers: Callable[[], WebConfig | None]) -> None:
        self._answers = list(answers)

    def changed(self) -> WebConfig | None:
        return self._answers.pop(0)()


def _refused() -> WebConfig | None:
    raise UsageError("web.yml: others may write it")


def test_the_web_file_is_followed() -> None:
    """A change is passed on, no change is not, and a file that is refused leaves what was there."""
    bench = Bench()
    bench.it.web = _Web(lambda: None, WebConfig, _refused, lambda: None)  # type: ignore[assignment]
    assert [kinds(bench.step()) for _ in range(4)] == [
        ["Rules", "State"],
        ["NewWeb", "State"],
        ["State"],
        ["State"],
    ]


def test_both_halves_agree_over_the_real_codec() -> None:
    """Everything that a sensor says in its life is a message that the codec takes."""
    one, other = socket.socketpair()
    with one, other:
        bench = Bench()
        bench.relay.mapping, bench.relay.peers = mapping(), {"a": [A], "b": [B, C]}
        sensor = Sensor(CONFIG, bench.edges, sensor_end(one, CONFIG.tables.peers))
        sensor.step()
        heard = list(aggregator_end(other, CONFIG.tables.peers).receive(1.0))
    assert [type(one) for one in heard] == [Rules, Peers, State]


def test_an_interface_that_comes_later_is_told_to_have_been_missed() -> None:
    """At the first look nothing was missed; one that is new or made anew was there before."""
    bench = Bench()
    bench.relay.mapping, bench.relay.peers = mapping(), {"a": [A]}
    assert "Missed" not in kinds(bench.step())
    assert "Missed" not in kinds(bench.step())
    bench.relay.ifindex = 9
    assert kinds(bench.step()) == ["Missed", "State"]
    bench.relay.missing = ("wg0",)
    assert "Missed" not in kinds(bench.step())
    bench.relay.missing = ()
    assert "Missed" in kinds(bench.step())


def test_flows_of_nobody_are_a_reason_to_look_at_once() -> None:
    """A second after the last look at the earliest; in vain, the next one is waited for twice as long."""
    bench = Bench()
    bench.relay.mapping, bench.relay.peers = mapping(), {"a": [A]}
    bench.clock.now = 100.0
    bench.step()
    bench.clock.now += 5.0
    assert not bench.it.is_wanted()
    bench.tables.strange = 3
    assert bench.it.is_wanted()
    bench.step()
    for patience in (2.0, 4.0):
        bench.tables.strange += 1
        bench.clock.now += patience - 0.1
        assert not bench.it.is_wanted()
        bench.clock.now += 0.1
        assert bench.it.is_wanted()
        bench.step()
    bench.tables.strange += 1
    bench.relay.peers = {"a": [A], "b": [B]}
    bench.step()
    bench.tables.strange += 1
    bench.clock.now += 1.0
    assert bench.it.is_wanted()
