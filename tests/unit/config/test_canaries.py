# SPDX-License-Identifier: Apache-2.0
"""What a file may declare a canary, and that nobody else becomes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.config.canaries import MAX_CANARIES, Canaries, NotCanaries, parse_canaries
from detector.config.file import ConfigError, load_config
from detector.config.model import Config

RANGE = ["10.127.255.0/24", "fc00:bbbb:bbbb:ffff::/64"]
GOOD = {"range": RANGE, "peers": {"c1": ["10.127.255.1", "fc00:bbbb:bbbb:ffff::1"], "c-2": ["10.127.255.2"]}}


def test_canaries_are_read_and_travel() -> None:
    """Names and addresses arrive, and a child process gets them as they are."""
    canaries = parse_canaries(GOOD)
    assert canaries.names == ("c1", "c-2")
    assert {str(address): name for address, name in canaries.by_address().items()} == {
        "10.127.255.1": "c1",
        "fc00:bbbb:bbbb:ffff::1": "c1",
        "10.127.255.2": "c-2",
    }
    config = Config(canaries=canaries)
    assert Config.from_json(config.to_json()) == config
    assert Config.from_json(Config().to_json()).canaries == Canaries()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "range and peers are expected"),
        ({**GOOD, "peer": {}}, "peer: unknown key"),
        ({"peers": GOOD["peers"]}, "range: expected a list of networks"),
        ({"range": ["10.127.255.1/24"], "peers": GOOD["peers"]}, "range[0]: not a network"),
        ({"range": [*RANGE, "10.0.0.0/15"], "peers": GOOD["peers"]}, "range[2]: wider than /16"),
        ({"range": ["::/47"], "peers": GOOD["peers"]}, "range[0]: wider than /48"),
        ({"range": RANGE}, "peers: expected names"),
        ({"range": RANGE, "peers": {}}, "peers: expected names"),
        ({"range": RANGE, "peers": {"C1": ["10.127.255.1"]}}, "peers.C1: a name is"),
        ({"range": RANGE, "peers": {"c" * 33: ["10.127.255.1"]}}, "a name is"),
        ({"range": RANGE, "peers": {7: ["10.127.255.1"]}}, "peers.7: a name is"),
        ({"range": RANGE, "peers": {"c1": []}}, "peers.c1: expected a list"),
        ({"range": RANGE, "peers": {"c1": ["10.64.0.9"]}}, "peers.c1[0]: the address is outside of"),
        (
            {"range": RANGE, "peers": {"c1": ["10.127.255.1", "fc00::1"]}},
            "peers.c1[1]: the address is outside",
        ),
        ({"range": RANGE, "peers": {"c1": ["10.127.255.1/32"]}}, "peers.c1[0]: not an IPv4 or IPv6 address"),
        (
            {"range": RANGE, "peers": {"c1": ["10.127.255.1", "10.127.255.2"]}},
            "peers.c1: more than one address",
        ),
        (
            {"range": RANGE, "peers": {"c1": ["10.127.255.1"], "c2": ["10.127.255.1"]}},
            "peers.c2[0]: the address is that of c1",
        ),
    ],
)
def test_a_wrong_one_is_refused_with_key_and_reason(value: object, expected: str) -> None:
    """Each guard names where and why, and quotes no address, which may be a customer's."""
    with pytest.raises(NotCanaries) as caught:
        parse_canaries(value)
    assert expected in str(caught.value)
    assert "10.64.0.9" not in str(caught.value)


@pytest.mark.parametrize("count", [MAX_CANARIES, MAX_CANARIES + 1])
def test_there_is_an_end_to_their_number(count: int) -> None:
    """64 are taken, 65 are not."""
    value = {"range": RANGE, "peers": {f"c{number}": [f"10.127.255.{number}"] for number in range(count)}}
    if count > MAX_CANARIES:
        with pytest.raises(NotCanaries, match="65 are more than 64"):
            parse_canaries(value)
    else:
        assert len(parse_canaries(value).peers) == count


def test_the_widest_ranges_are_taken() -> None:
    """A /16 and a /48 are still set aside."""
    canaries = parse_canaries({"range": ["10.127.0.0/16", "fc00::/48"], "peers": {"c": ["10.127.255.1"]}})
    assert canaries.range == ("10.127.0.0/16", "fc00::/48")


def test_the_file_says_which_key_and_shows_no_address(tmp_path: Path) -> None:
    """`check-config` and the log name the key; the value, which holds addresses, stays unsaid."""
    path = tmp_path / "exitprint.yml"
    path.write_text("canaries:\n  range: [10.127.255.0/24]\n  peers:\n    c1: [10.64.0.9]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "canaries" in str(caught.value)
    assert "peers.c1[0]: the address is outside of canaries.range" in str(caught.value)
    assert "10.64.0.9" not in str(caught.value)
