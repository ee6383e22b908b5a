# SPDX-License-Identifier: Apache-2.0
"""WireGuard interfaces of a network namespace, and the peers of those in the kernel, over netlink.

Of a device's answer (include/uapi/linux/wireguard.h) only public keys and allowed-ips become objects.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Any

from detector.base.errors import HostError, NotYet
from detector.wireguard.model import AllowedIp, Interface, Peers, PublicKey, is_mapped
from detector.wireguard.netlink import (
    NETLINK_GENERIC,
    NETLINK_ROUTE,
    DumpInterrupted,
    Netlink,
    NetlinkError,
    attributes,
    ctrlmsg,
    genlmsg,
    rtgenmsg,
)

_RTM_GETLINK = 18
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 18, 1
_IFINFOMSG_BYTES = 16
_IFI_INDEX = struct.Struct("=4xi")

_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_ID = 16, 3, 1
_GENL_HEADER_BYTES = 4

_WG_CMD_GET_DEVICE, _WG_GENL_VERSION = 0, 1
_WGDEVICE_A_PEERS = 8
_WGPEER_A_PUBLIC_KEY, _WGPEER_A_ALLOWEDIPS = 1, 9
_WGALLOWEDIP_A_IPADDR, _WGALLOWEDIP_A_CIDR_MASK = 2, 3

_TRIES = 5

Found = dict[PublicKey, list[AllowedIp]]


class _GetDevice(genlmsg):  # type: ignore[misc]  # pyroute2 has no types
    nla_map = (("WGDEVICE_A_UNSPEC", "none"), ("WGDEVICE_A_IFINDEX", "uint32"))


def list_links() -> list[tuple[str, int, str]]:
    """Every interface of the namespace: name, ifindex and kind ("wireguard", "tun", ... or "").

    Raises:
        HostError: the kernel did not list them.
    """
    for _ in range(_TRIES):
        try:
            with Netlink(NETLINK_ROUTE) as netlink:
                return [_parse_link(link) for link in netlink.request(rtgenmsg(), _RTM_GETLINK, dump=True)]
        except DumpInterrupted:
            continue
        except OSError as error:
            raise HostError(f"cannot list the network interfaces: {error.strerror or 'no answer'}") from None
    raise NotYet("the network interfaces change faster than they can be listed")


def read_device(interface: Interface) -> Peers:
    """The peers of a kernel interface.

    Raises:
        NotYet: it went away, or its peers change faster than they can be listed.
        HostError: the kernel refused or did not answer.
    """
    for _ in range(_TRIES):
        found: Found = {}
        try:
            with Netlink(NETLINK_GENERIC) as netlink:
                for message in netlink.request(_device_request(interface), _family(netlink), dump=True):
                    collect_peers(message, found)
        except DumpInterrupted:
            continue
        except OSError as error:
            raise _refusal(interface, error) from None
        return {key: tuple(allowed) for key, allowed in found.items()}
    raise NotYet(f"the peers of {interface.name} change faster than they can be listed")


def collect_peers(message: memoryview, found: Found) -> None:
    """Add the peers of one message of a device's answer to `found`.

    A peer with many allowed-ips goes on in the next message under the same public key.

    Args:
        message: the message from its generic netlink header on.
        found: the peers so far.
    """
    for kind, start, end in attributes(message, _GENL_HEADER_BYTES, len(message)):
        if kind == _WGDEVICE_A_PEERS:
            for _, peer, peer_end in attributes(message, start, end):
                _collect_peer(message, peer, peer_end, found)


def _collect_peer(message: memoryview, start: int, end: int, found: Found) -> None:
    key: PublicKey | None = None
    allowed: list[AllowedIp] = []
    for kind, value, value_end in attributes(message, start, end):
        if kind == _WGPEER_A_PUBLIC_KEY:
            key = PublicKey(message[value:value_end])
        elif kind == _WGPEER_A_ALLOWEDIPS:
            allowed.extend(_allowed_ips(message, value, value_end))
    if key is not None:
        found.setdefault(key, []).extend(allowed)


def _allowed_ips(message: memoryview, start: int, end: int) -> Iterator[AllowedIp]:
    for _, entry, entry_end in attributes(message, start, end):
        network, prefix = b"", 0
        for kind, value, value_end in attributes(message, entry, entry_end):
            if kind == _WGALLOWEDIP_A_IPADDR:
                network = bytes(message[value:value_end])
            elif kind == _WGALLOWEDIP_A_CIDR_MASK:
                prefix = message[value]
        if len(network) in (4, 16) and not is_mapped(network):
            yield AllowedIp(network, prefix)


def _parse_link(message: memoryview) -> tuple[str, int, str]:
    name = kind = ""
    for attribute, start, end in attributes(message, _IFINFOMSG_BYTES, len(message)):
        if attribute == _IFLA_IFNAME:
            name = _text(message[start:end])
        elif attribute == _IFLA_LINKINFO:
            kinds = (message[s:e] for a, s, e in attributes(message, start, end) if a == _IFLA_INFO_KIND)
            kind = _text(next(kinds, memoryview(b"")))
    return name, _IFI_INDEX.unpack_from(message)[0], kind


def _text(value: memoryview) -> str:
    return bytes(value).rstrip(b"\0").decode(errors="surrogateescape")


def _family(netlink: Netlink) -> int:
    """The number that the kernel gave to WireGuard's netlink family."""
    request = ctrlmsg()
    request["cmd"], request["version"] = _CTRL_CMD_GETFAMILY, 1
    request["attrs"] = [("CTRL_ATTR_FAMILY_NAME", "wireguard")]
    for message in netlink.request(request, _GENL_ID_CTRL):
        for kind, start, _ in attributes(message, _GENL_HEADER_BYTES, len(message)):
            if kind == _CTRL_ATTR_FAMILY_ID:
                return int(struct.unpack_from("=H", message, start)[0])
    raise NetlinkError(errno.ENOENT, "no such family")


def _device_request(interface: Interface) -> Any:
    request = _GetDevice()
    request["cmd"], request["version"] = _WG_CMD_GET_DEVICE, _WG_GENL_VERSION
    request["attrs"] = [("WGDEVICE_A_IFINDEX", interface.ifindex)]
    return request


def _refusal(interface: Interface, error: OSError) -> HostError:
    if error.errno in (errno.ENODEV, errno.ENOENT):
        return NotYet(f"the WireGuard interface {interface.name} went away")
    if error.errno in (errno.EPERM, errno.EACCES):
        return HostError(
            f"not allowed to read the peers of {interface.name}", "it needs CAP_NET_ADMIN: run as root"
        )
    return HostError(
        f"cannot read the peers of {interface.name}: {error.strerror or 'the kernel does not answer'}"
    )
