# SPDX-License-Identifier: Apache-2.0
"""Notices of the kernel: what changes the relay is one, what happens all the time is none."""

from __future__ import annotations

import os
import select
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.daemon.notices import Notices, is_change
from detector.lab.namespaces import Namespace, entered, ip_batch

HEADER = struct.Struct("=IHHII")


def message(kind: int, body: bytes = b"") -> bytes:
    """A netlink message."""
    return HEADER.pack(HEADER.size + len(body), kind, 0, 0, 0) + body.ljust(len(body) + 3 & ~3, b"\0")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (16, True),  # a link that is new or has changed
        (17, True),
        (20, False),  # an address
        (10 << 8 | 0, True),  # a table of nftables
        (10 << 8 | 6, True),  # a rule
        (10 << 8 | 8, True),
        (10 << 8 | 12, False),  # an element of a set
        (10 << 8 | 14, False),
        (10 << 8 | 15, False),  # the end of a transaction
        (1 << 8 | 0, False),  # a conntrack entry
    ],
)
def test_what_is_a_change(kind: int, change: bool) -> None:
    """By the type of the message, wherever in a datagram it is."""
    assert is_change(message(kind)) is change
    assert is_change(message(20, b"xyz") + message(kind)) is change


@given(st.binary(max_size=200))
def test_any_datagram_is_a_change_or_none(datagram: bytes) -> None:
    """Whatever comes, no error and no end without one."""
    assert is_change(datagram) in (True, False)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a namespace needs root")
def test_links_and_rules_are_noticed_at_once() -> None:
    """An interface that comes, a ruleset that is loaded and flushed; and then there is nothing more."""
    name = f"exitprint-notices-{os.getpid()}"
    ip_batch([f"netns add {name}"])
    try:
        space = Namespace(name)
        with entered(space):
            notices = Notices()
        while notices.taken():
            pass
        assert not select.select(notices.filenos(), [], [], 0.2)[0]
        for change in (
            ["ip", "tuntap", "add", "dev", "notices7", "mode", "tun"],
            ["nft", "add table ip notices; add chain ip notices c; add rule ip notices c accept"],
            ["nft", "flush", "ruleset"],
        ):
            subprocess.run(["ip", "netns", "exec", name, *change], check=True)
            assert select.select(notices.filenos(), [], [], 10)[0], change
            assert notices.taken()
    finally:
        ip_batch([f"netns del {name}"])
