# SPDX-License-Identifier: Apache-2.0
"""What the processes of the service say to each other, each kind of message a dataclass.

A public key or a tunnel address is in none of them; addresses are exits, the relay's own. `detector.daemon.
channel` bounds their length, `detector.daemon.codec` checks what arrives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from detector.base.family import Family
from detector.base.verdicts import Verdict
from detector.config.canaries import Canaries
from detector.config.model import Config
from detector.config.reload import Reload
from detector.config.tls import Mark, WebConfig

MAX_PSEUDONYM = 64
_MAX_SLOT = 1 << 24


def for_aggregator(config: Config) -> Config:
    """A configuration without the tunnel addresses that it names: the aggregator is told of none."""
    named = tuple(replace(one, addresses=()) for one in config.canaries.peers)
    return replace(config, canaries=Canaries((), named))


@dataclass(frozen=True, slots=True)
class Member:
    """A slot as the aggregator is told of it.

    Attributes:
        is_network: it stands for a network of tunnel addresses.
    """

    slot: int
    family: Family
    is_network: bool
    pseudonym: str

    def __post_init__(self) -> None:
        if not 0 <= self.slot < _MAX_SLOT:
            raise ValueError("a slot of the table")
        if not 1 <= len(self.pseudonym) <= MAX_PSEUDONYM or not self.pseudonym.isascii():
            raise ValueError("a pseudonym")


@dataclass(frozen=True, slots=True)
class ExitRanges:
    """An exit pool as the aggregator is told of it.

    Attributes:
        ranges: first and last address of each.
        origin: where the rules that choose from it stand, for people.
    """

    family: Family
    origin: str
    ranges: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Peers:
    """Slots came and went. The kernel counts for those of `added` only after this was sent.

    Attributes:
        added: those that stand for somebody from now on; one of `left` may be among them.
        retired: those that will stand for somebody else.
        left: those whose tunnel address has gone, and that are kept for it.
    """

    added: tuple[Member, ...]
    retired: tuple[int, ...]
    left: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """The mapping has changed, so evidence begins anew.

    Attributes:
        epoch: number of the rules, from 1 on.
        ambiguous: how many rules could not be understood.
        exclusive: families in which a rule maps peers to exits one to one.
        lasting: see `detector.nat.mapping.Mapping`.
        added: every slot there is.
    """

    epoch: int
    ambiguous: int
    exclusive: tuple[Family, ...]
    lasting: tuple[tuple[Family, Verdict], ...]
    pools: tuple[ExitRanges, ...]
    added: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class State:
    """The sensor lives, said at each of its looks.

    Attributes:
        waiting: what it waits for, empty for nothing.
        watching: there are peers to watch.
        refused: tunnel addresses that have no slot.
        resident: bytes of the sensor in memory.
        held: how many of what it has in memory, by name.
        runs, run_nanoseconds: of the kernel program, zeros while the kernel does not count them.
    """

    waiting: str
    watching: bool
    refused: int
    resident: int
    held: Mapping[str, int]
    runs: int
    run_nanoseconds: int


@dataclass(frozen=True, slots=True)
class PredictorTrial:
    """One predictor of the tunnel address, tried by the sensor for one rule.

    Attributes:
        predictor: its name.
        rule: where the rule stands, for people; empty where nobody knows.
        tried, hit: persons, one trial each, on the exit that it has most often.
        chance: share of hits that independent exits would give.
        hypotheses: how many forms were tried to find the one that fits best.
        flagged: slots whose exit it names; None where it does not hold, and they are chance.
    """

    family: Family
    predictor: str
    rule: str
    tried: int
    hit: int
    chance: float
    hypotheses: int
    flagged: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Trials:
    """What all predictors come to under the rules of an epoch: sums, and no prediction."""

    epoch: int
    trials: tuple[PredictorTrial, ...]


@dataclass(frozen=True, slots=True)
class Missed:
    """An interface was there before it was watched: what came in by it since the last drain was nobody's."""


@dataclass(frozen=True, slots=True)
class NewConfig:
    """The configuration to go on with, and how reading it went."""

    config: Config
    reload: Reload


@dataclass(frozen=True, slots=True)
class NewWeb:
    """What `web_config_file` says from now on."""

    config: WebConfig = field(repr=False)


@dataclass(frozen=True, slots=True)
class Stop:
    """The service ends."""


@dataclass(frozen=True, slots=True)
class Released:
    """Nothing is counted for these retired slots any more: they may stand for others."""

    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Alive:
    """The aggregator serves, and goes on."""


ToAggregator = Peers | Rules | State | Trials | Missed | NewConfig | NewWeb | Stop
ToSensor = Released | Alive


@dataclass(frozen=True, slots=True)
class SensorSpec:
    """What `start` hands the sensor.

    Attributes:
        maps: descriptors of the kernel's tables that it writes, and of what keeps the program attached.
        channel: descriptor of the socket to the aggregator.
        aggregator: the aggregator's process number.
        path: the configuration file.
        web: marks of everything that `web_config_file` names, as it was read.
        legacy: descriptor of the socket to what reads the rules of iptables-legacy, None where nothing does.
    """

    config: Config
    maps: Mapping[str, int]
    channel: int
    aggregator: int
    path: str
    web: Mapping[str, Mark]
    legacy: int | None = None


@dataclass(frozen=True, slots=True)
class SocketAccess:
    """Owner, group and mode of the inspect socket."""

    owner: int
    group: int | None
    mode: int


@dataclass(frozen=True, slots=True)
class AggregatorSpec:
    """What `start` hands the aggregator.

    Attributes:
        maps: descriptors of the kernel's tables that it reads.
        channel: descriptor of the socket to the sensor.
        listener: descriptor of the socket that pages are served on.
        inspect: descriptor of the inspect socket, None where there is none.
        access: who may ask there.
        web: what `web_config_file` says, None where there is none.
        user: whom to become.
        hook: the hook that the program is attached to.
    """

    config: Config
    maps: Mapping[str, int]
    channel: int
    listener: int
    inspect: int | None
    access: SocketAccess
    web: WebConfig | None = field(repr=False)
    user: str
    hook: str
