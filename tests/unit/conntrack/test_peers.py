# SPDX-License-Identifier: Apache-2.0
"""Allowed-ips as `wg show` prints them."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from detector.base.errors import UsageError
from detector.base.family import pack
from detector.conntrack.peers import NOBODY, Peers, read_peers_file

KEY = "qwertyuiopasdfghjklzxcvbnm0123456789ABCDEFG="


@pytest.mark.parametrize("interface", ["", "wg0\t"])
def test_both_forms_are_read(tmp_path: Path, interface: str) -> None:
    """With and without the interface's name, several allowed-ips or none, both families."""
    path = tmp_path / "peers"
    path.write_text(
        f"{interface}{KEY}\t10.64.0.2/32 fd00::2/128\n{interface}{KEY}\t(none)\n\n"
        f"{interface}{KEY}\t10.65.0.0/24\n"
    )
    peers = read_peers_file(path)
    assert len(peers.allowed) == 3
    assert peers[pack(ip_address("fd00::2"))] == 1
    assert peers[pack(ip_address("10.65.0.200"))] == 2
    assert peers[pack(ip_address("10.66.0.200"))] == NOBODY


@pytest.mark.parametrize(
    "content", ["", f"{KEY}\t(none)\n", f"wg0 {KEY} 10.64.0.300/32\n", "interface: wg0\n", KEY]
)
def test_anything_else_is_named_without_its_content(tmp_path: Path, content: str) -> None:
    """What is not a list of allowed-ips is a user's error that tells neither key nor tunnel address."""
    path = tmp_path / "peers"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_peers_file(path)
    assert "wg show" in str(caught.value)
    assert KEY not in str(caught.value)
    assert "10.64" not in str(caught.value)


def test_without_a_list_everyone_is_a_peer() -> None:
    """Each address that is asked for gets a row of its own, once."""
    peers = Peers()
    addresses = [pack(ip_address(text)) for text in ("10.0.0.1", "fd00::1", "10.0.0.1")]
    assert [peers[one] for one in addresses] == [0, 1, 0]
    assert [str(one.address) for one in peers.allowed] == ["10.0.0.1", "fd00::1"]
