# SPDX-License-Identifier: Apache-2.0
"""Messages arrive as they were, and what is no message is refused without being told back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.base.family import Family
from detector.base.verdicts import Verdict
from detector.config.model import Config, Listen, Tables
from detector.config.reload import Reload
from detector.config.tls import Tls, WebConfig
from detector.daemon import messages
from detector.daemon.codec import Malformed, convert, decode, encode
from detector.daemon.messages import (
    AggregatorSpec,
    Alive,
    ExitRanges,
    Member,
    Missed,
    NewConfig,
    NewWeb,
    Peers,
    PredictorTrial,
    Released,
    Rules,
    SensorSpec,
    SocketAccess,
    State,
    Stop,
    Trials,
)

MEMBER = Member(3, Family.IPV6, False, "peer-abc")
WEB = WebConfig(Tls("certificate", "key", allowed_names=("a", "b")), {"user": "hash"})
CONFIG = Config("relay", ("wg0",), None, ("203.0.113.1",), listen=Listen("::1", 1), tables=Tables(peers=7))
EXAMPLES: list[object] = [
    Peers((MEMBER,), (1, 2)),
    Rules(
        2,
        1,
        (Family.IPV4,),
        ((Family.IPV6, Verdict.PINNED),),
        (ExitRanges(Family.IPV4, "x", (("203.0.113.1", "203.0.113.9"),)),),
        (MEMBER,),
    ),
    State("for nothing", True, 0, 1 << 40, {"keys": 3}, 5, 6),
    Trials(3, (PredictorTrial(Family.IPV4, "modulo", "here", 9, 5, 0.25, 3, (1, 2)),)),
    Missed(),
    NewConfig(CONFIG, Reload(False, 12.5, ("hook",))),
    NewWeb(WEB),
    Stop(),
    Released((4, 5)),
    Alive(),
    SensorSpec(CONFIG, {"peers": 3}, 4, 99, "/etc/x", {"/etc/web.yml": (1, 2, 3)}),
    AggregatorSpec(
        CONFIG, {"pairs": 3}, 4, 5, None, SocketAccess(0, None, 0o600), WEB, "exitprint", "kprobe"
    ),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda one: type(one).__name__)
def test_a_message_arrives_as_it_was(message: object) -> None:
    """Every kind, with all that can be in it."""
    assert decode(type(message), encode(message)) == message


def test_every_kind_has_an_example() -> None:
    """A kind that is added is tried here."""
    tried = {type(one) for one in EXAMPLES}
    assert {*get_args(messages.ToAggregator), *get_args(messages.ToSensor)} <= tried


def mutations(told: Any) -> list[Any]:
    """What is nearly a message: each part replaced, left out or added to."""
    others: list[Any] = [None, True, -1, 1.5, "x", [], {}, [[]], {"a": 1}, 1 << 70]
    found: list[Any] = list(others)
    if isinstance(told, dict):
        for key, value in told.items():
            found += [{**told, key: one} for one in mutations(value)]
            found.append({name: value for name, value in told.items() if name != key})
        found.append({**told, "more": 1})
    if isinstance(told, list) and told:
        found += [[one, *told[1:]] for one in mutations(told[0])]
    return found


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda one: type(one).__name__)
def test_what_is_nearly_a_message_is_refused_or_means_the_same(message: object) -> None:
    """Whatever part is something else: either it is a message that comes back as it is told, or refused."""
    told = json.loads(encode(message))
    refused = 0
    for other in mutations(told):
        try:
            made = convert(type(message), other)
        except Malformed:
            refused += 1
        else:
            assert json.loads(encode(made)) == other
    assert refused > len(mutations(told)) / 2


@given(st.sampled_from(EXAMPLES), st.binary(max_size=60), st.data())
def test_bytes_that_were_tampered_with_never_do_harm(
    message: object, more: bytes, data: st.DataObject
) -> None:
    """Cut, replaced or made longer anywhere: a message or `Malformed`, no other error."""
    raw = encode(message)
    at = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(at, len(raw)))
    try:
        decode(type(message), raw[:at] + more + raw[end:])
    except Malformed as error:
        assert more.decode("latin-1") not in error.what or len(more) < 4


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        (b"[" * 100_000, "Released: JSON"),
        (b'{"slots":[1,"secret"]}', r"Released.slots\[\]: a whole number"),
        (b'{"slots":[1,NaN]}', r"Released.slots\[\]"),
        (b'{"slots":[true]}', r"Released.slots\[\]"),
        (b'{"slots":[1e3]}', r"Released.slots\[\]"),
        (b'{"slots":5}', "Released.slots: a list"),
        (b"{}", "an object with slots"),
        (b"\xff", "JSON"),
    ],
)
def test_the_place_is_named_and_the_value_is_not(raw: bytes, place: str) -> None:
    """What is wrong can be found, and what was sent is not repeated in a log."""
    with pytest.raises(Malformed, match=place) as caught:
        decode(Released, raw)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "member",
    [
        {"slot": -1},
        {"slot": 1 << 24},
        {"pseudonym": ""},
        {"pseudonym": "x" * 65},
        {"pseudonym": "p\u00e9er"},
        {"family": "ipv5"},
    ],
)
def test_a_member_has_a_slot_and_a_name_that_can_be(member: dict[str, object]) -> None:
    """Bounds that a type does not say are kept as well."""
    told = json.loads(encode(MEMBER)) | member
    with pytest.raises(Malformed, match="Member"):
        convert(Member, told)


def test_a_class_that_no_message_can_hold_is_our_own_mistake() -> None:
    """A field whose type the codec does not know is found when the code is tried, not by a peer."""

    @dataclass(frozen=True)
    class Odd:
        what: object

    with pytest.raises(TypeError, match="no message holds"):
        convert(Odd, {"what": 1})
    with pytest.raises(TypeError, match="no message holds"):
        encode(Odd(object()))
