# SPDX-License-Identifier: Apache-2.0
"""Reads the peers of every WireGuard interface of our network namespace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from detector.base.errors import ExitprintError
from detector.wireguard.interfaces import list_links, read_device
from detector.wireguard.model import Interface, InterfacePeers, Kind, Peers, Snapshot
from detector.wireguard.uapi import SOCKETS, list_sockets, read_socket

Reader = Callable[[], Peers]


def find_interfaces(sockets: Path = SOCKETS) -> list[tuple[Interface, Reader]]:
    """Every WireGuard interface of our network namespace, with the function that reads its peers.

    Raises:
        HostError: the kernel did not list the interfaces.
    """
    paths = list_sockets(sockets)
    found: list[tuple[Interface, Reader]] = []
    for name, ifindex, kind in list_links():
        if kind == "wireguard":
            interface = Interface(name, ifindex, Kind.KERNEL)
            found.append((interface, partial(read_device, interface)))
        elif kind == "tun" and name in paths:
            interface = Interface(name, ifindex, Kind.USER_SPACE)
            found.append((interface, partial(read_socket, interface, paths[name])))
    return found


def read_peers(interfaces: Sequence[str] | None = None, sockets: Path = SOCKETS) -> Snapshot:
    """The peers of the interfaces that are named, or of all.

    An interface that is not there, or cannot be read, is said to be in the snapshot; the others go on.

    Args:
        interfaces: names, or None for every WireGuard interface of our network namespace.
        sockets: where user-space WireGuard keeps its sockets.

    Raises:
        HostError: the kernel did not list the interfaces.
    """
    read: list[InterfacePeers] = []
    unread: dict[str, ExitprintError] = {}
    there = [
        (interface, reader)
        for interface, reader in find_interfaces(sockets)
        if _wanted(interface, interfaces)
    ]
    for interface, reader in there:
        try:
            read.append(InterfacePeers(interface, reader()))
        except ExitprintError as error:
            unread[interface.name] = error
    names = {interface.name for interface, _ in there}
    missing = tuple(name for name in interfaces or () if name not in names)
    return Snapshot(tuple(read), missing, unread)


def _wanted(interface: Interface, names: Collection[str] | None) -> bool:
    return names is None or interface.name in names
