# SPDX-License-Identifier: Apache-2.0
"""What each predictor says, on pools where the answer is known."""

from __future__ import annotations

from ipaddress import ip_address
from zlib import crc32

from detector.base.family import Address
from detector.predictors import BANK, NAMES, ExitPool, HashRule, meaning, predict
from detector.predictors.kernel_hash import kernel_exit, nft_jhash

PEERS: list[Address] = [ip_address(f"10.64.0.{host}") for host in range(2, 42)]
RANGE = ExitPool(ip_address("192.0.2.64"), ip_address("192.0.2.127"))
ODD = ExitPool(ip_address("203.0.113.5"), ip_address("203.0.113.15"))


def test_one_prediction_a_pool_and_peer() -> None:
    """With two pools each peer gets two predictions, each inside its own pool."""
    for rows in predict(PEERS, [RANGE, ODD]).values():
        assert len(rows) == len(PEERS)
        for in_range, in_odd in rows:
            assert in_range is None or RANGE.first <= in_range <= RANGE.last  # type: ignore[operator]
            assert in_odd is None or ODD.first <= in_odd <= ODD.last  # type: ignore[operator]


def test_kernel_persistent_is_the_kernel_choice() -> None:
    """The predictor and the kernel's formula are the same function, for IPv6 too."""
    said = predict(PEERS, [ODD])["kernel_persistent"]
    assert [row[0] for row in said] == [
        kernel_exit(peer, None, ODD.first, ODD.last, persistent=True) for peer in PEERS
    ]
    first, last, peer = map(ip_address, ("2001:db8::10", "2001:db8::6a", "fd00::12"))
    assert predict([peer], [ExitPool(first, last)])["kernel_persistent"] == [
        [kernel_exit(peer, None, first, last)]
    ]


def test_netmap_keeps_host_bits_and_needs_a_prefix() -> None:
    """Host bits are kept under a whole prefix; a pool that is none is not tried."""
    assert predict([ip_address("10.64.0.7")], [RANGE])["netmap"] == [[ip_address("192.0.2.71")]]
    assert "netmap" not in predict(PEERS, [ODD])


def test_modulo_and_linear_walk_through_the_pool() -> None:
    """Modulo follows the address, linear the rank: in order while peers are few, in blocks when many."""
    said = predict(PEERS, [RANGE])
    assert said["modulo"][3] == [RANGE.at(int(PEERS[3]) % 64)]
    assert [row[0] for row in said["linear"]] == [RANGE.at(rank) for rank in range(40)]
    blocks = [row[0] for row in predict(PEERS, [ODD])["linear"]]
    assert blocks == sorted(blocks, key=lambda exit_address: int(exit_address or PEERS[0]))
    assert len(set(blocks)) == 11


def test_seeded_jhash_reads_the_map() -> None:
    """The hash's number is looked up among the listed exits, with a mask where the rule has one."""
    listed = tuple(ip_address(f"198.51.100.{n}") for n in (9, 4, 77))
    pool = ExitPool(listed[1], listed[2], listed, HashRule((None, 0xFFFF0000), 3, 99))
    said = predict(PEERS, [pool])
    numbers = [nft_jhash([peer.packed, bytes((10, 64, 0, 0))], 3, 99) for peer in PEERS]
    assert said["seeded_jhash"] == [[listed[number]] for number in numbers]
    assert "kernel_persistent" not in said


def test_every_name_is_explained() -> None:
    """Names are unique, in order of severity, and each has words for people."""
    assert len(set(NAMES)) == len(BANK) == 7
    assert NAMES[:2] == ("kernel_persistent", "kernel_destination")
    assert all(" " in meaning(name) for name in NAMES)
    assert meaning("something else") == "something else"


def test_crc32_is_that_of_the_bytes() -> None:
    """As zlib reckons it, modulo the size; a pool of one is not tried."""
    said = predict(PEERS, [ODD])["crc32"]
    assert said == [[ODD.at(crc32(peer.packed) % 11)] for peer in PEERS]
    assert "crc32" not in predict(PEERS, [ExitPool(ODD.first, ODD.first)])
