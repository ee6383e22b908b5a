# SPDX-License-Identifier: Apache-2.0
"""Kernel WireGuard: what is taken from a device's answer, and what is left of it afterwards."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.generic.wireguard import wgmsg

from detector.base.errors import HostError, NotYet
from detector.base.family import Family
from detector.wireguard.interfaces import Found, collect_peers, list_links, read_device
from detector.wireguard.model import AllowedIp, Interface, Kind, PublicKey
from detector.wireguard.netlink import (
    NETLINK_GENERIC,
    NETLINK_ROUTE,
    Netlink,
    NetlinkError,
    attributes,
    ctrlmsg,
    rtgenmsg,
)
from tests.unit.wireguard import device_dump


def collected(messages: list[bytes]) -> Found:
    """What is found in an answer."""
    found: Found = {}
    for message in messages:
        collect_peers(memoryview(message), found)
    return found


def test_peers_of_an_answer() -> None:
    """Each peer of a device's answer arrives with exactly its allowed-ips."""
    peers = device_dump.many(500)
    assert collected(list(device_dump.messages(peers))) == dict(peers)


def test_a_split_peer_is_merged() -> None:
    """A peer whose allowed-ips go on over several messages is one peer."""
    addresses = [(number.to_bytes(4, "big"), 32) for number in range(2500)]
    messages = list(device_dump.messages([(b"k" * 32, addresses), (b"l" * 32, [])]))
    assert len(messages) > 2
    assert collected(messages) == {b"k" * 32: addresses, b"l" * 32: []}


def test_another_encoder_agrees() -> None:
    """An answer that pyroute2's own WireGuard classes encode is read the same."""
    message = wgmsg()
    peer = [
        ["WGPEER_A_PUBLIC_KEY", "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="],
        ["WGPEER_A_ALLOWEDIPS", [{"attrs": [
            ["WGALLOWEDIP_A_FAMILY", 2],
            ["WGALLOWEDIP_A_IPADDR", bytes([10, 64, 0, 0])],
            ["WGALLOWEDIP_A_CIDR_MASK", 24],
        ]}]],
    ]  # fmt: skip
    message["attrs"] = [["WGDEVICE_A_IFNAME", "wg0"], ["WGDEVICE_A_PEERS", [{"attrs": peer}]]]
    message.encode()
    ((key, (allowed,)),) = collected([bytes(message.data[16:])]).items()
    assert key.hex().startswith("c809f3e5317e95")
    assert (allowed.address, allowed.prefix, allowed.is_network) == (ip_address("10.64.0.0"), 24, True)


def test_secrets_become_no_objects() -> None:
    """Neither the private nor a preshared key is in what was read, and nothing prints a peer."""
    found = collected(list(device_dump.messages(device_dump.many(3))))
    told = [bytes(key) for key in found] + [allowed.network for ips in found.values() for allowed in ips]
    assert not {device_dump.PRIVATE, device_dump.PRESHARED} & set(told)
    assert {repr(key) for key in found} == {"<public key>"}
    assert f"{found}".count("<allowed-ip>") == 6
    assert str(PublicKey(32)) == f"{PublicKey(32)}" == "<public key>"


def test_mapped_addresses_are_left_out() -> None:
    """An IPv6 allowed-ip that looks like an IPv4 one cannot take the IPv4 one's place."""
    mapped = (bytes(10) + b"\xff\xff\x0a\x00\x00\x01", 128)
    assert collected(list(device_dump.messages([(b"k" * 32, [mapped])]))) == {b"k" * 32: []}


def test_allowed_ip_as_the_tables_have_it() -> None:
    """IPv4 becomes 16 bytes with its prefix counted from their start; IPv6 stays."""
    four, six = AllowedIp(b"\x0a\x00\x00\x01", 32), AllowedIp(b"\xfd" + bytes(15), 64)
    assert (four.packed, four.packed_prefix) == (bytes(10) + b"\xff\xff\x0a\x00\x00\x01", 128)
    assert (six.packed, six.packed_prefix) == (b"\xfd" + bytes(15), 64)
    assert (four.family, six.family, four.is_network, six.is_network) == (
        Family.IPV4,
        Family.IPV6,
        False,
        True,
    )


@given(st.binary(max_size=200), st.integers(0, 60))
def test_any_bytes_are_walked(noise: bytes, cut: int) -> None:
    """Broken or cut answers end in fewer peers, never in an error."""
    whole = next(device_dump.messages(device_dump.many(2)))
    collected([noise, whole[:-cut] + noise if cut else whole, whole[:80] + noise])


@given(st.binary(max_size=100))
def test_attributes_stay_inside(noise: bytes) -> None:
    """No attribute reaches beyond its message."""
    assert all(start <= end <= len(noise) for _, start, end in attributes(memoryview(noise), 0, len(noise)))


def test_links_of_this_namespace() -> None:
    """Over real netlink, the loopback interface is listed with its index."""
    assert ("lo", 1, "") in list_links()


def test_an_answer_is_wiped() -> None:
    """The memory that an answer was read into holds nothing of it afterwards."""
    with Netlink(NETLINK_ROUTE) as netlink:
        names = sum(b"lo\0" in bytes(message) for message in netlink.request(rtgenmsg(), 18, dump=True))
        assert names == 1
        assert not any(netlink._buffer)


def test_an_answer_that_is_left_early_is_wiped() -> None:
    """Whoever stops reading in the middle leaves nothing of the answer behind."""
    with Netlink(NETLINK_ROUTE) as netlink:
        answer = netlink.request(rtgenmsg(), 18, dump=True)
        next(answer)
        answer.close()  # type: ignore[attr-defined]
        assert not any(netlink._buffer)


def test_a_refusal_has_its_reason() -> None:
    """What the kernel refuses is an error with the kernel's code."""
    request = ctrlmsg()
    request["cmd"], request["version"] = 3, 1
    request["attrs"] = [("CTRL_ATTR_FAMILY_NAME", "no-such-family")]
    with Netlink(NETLINK_GENERIC) as netlink, pytest.raises(NetlinkError, match="No such file"):
        list(netlink.request(request, 16))


def test_a_device_that_is_none() -> None:
    """Reading an interface that is not there, or no WireGuard, names it and is an error of ours."""
    with pytest.raises(HostError, match="wg-none") as caught:
        read_device(Interface("wg-none", 1, Kind.KERNEL))
    assert isinstance(caught.value, NotYet) or "not supported" in str(caught.value)


def test_pyroute2_stays_whole() -> None:
    """Importing our parts of pyroute2 first loads little of it and leaves all of it usable."""
    code = (
        "import sys, detector.wireguard.read; assert 'asyncio' not in sys.modules; "
        "from pyroute2 import IPRoute; import pyroute2.netlink.generic; print(len(IPRoute().get_links()) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
