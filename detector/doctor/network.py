# SPDX-License-Identifier: Apache-2.0
"""What there is to watch: conntrack and WireGuard in this network namespace. The service waits for both."""

from __future__ import annotations

import os

from detector.base.errors import HostError
from detector.doctor.check import Finding, Host, fail, note, ok
from detector.wireguard.read import find_interfaces

_CONNTRACK = "proc/sys/net/netfilter/nf_conntrack"
_NEARLY_FULL = 0.9
_MODULE = "drivers/net/wireguard"


def conntrack(host: Host) -> Finding:
    """Conntrack is loaded and has room."""
    most, count = host.read(f"{_CONNTRACK}_max"), host.read(f"{_CONNTRACK}_count")
    if most is None:
        return note(
            "not loaded yet; the first NAT rule loads it, and the service waits", "modprobe nf_conntrack"
        )
    if count is not None and int(most) and int(count) > _NEARLY_FULL * int(most):
        mend = f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}"
        return note(f"{count} of {most} entries: nearly full, new flows will be dropped", mend)
    return ok(f"{count or 0} of {most} entries")


def conntrack_is_loaded(host: Host) -> bool:
    """Whether this namespace has connection tracking."""
    return host.has(f"{_CONNTRACK}_max")


def network_namespace(host: Host) -> Finding:
    """The namespace to watch is there."""
    path = host.config.namespace_path
    if path is None:
        return ok("our own")
    if host.has(str(path).lstrip("/")):
        return ok(str(path))
    return fail(f"no {path}", f"ip netns add {path.name}, or correct network_namespace")


def wireguard(host: Host) -> Finding:
    """WireGuard interfaces of this namespace; doctor looks in the one that it runs in."""
    if host.config.namespace_path is not None:
        return note(
            "not looked at: it is in another namespace", f"ip netns exec {host.config.network_namespace} wg"
        )
    try:
        found = [interface for interface, _ in find_interfaces()]
    except HostError as error:
        return fail(error.what, error.hint or "run as root")
    there = {interface.name for interface in found}
    missing = [name for name in host.config.wireguard or () if name not in there]
    if missing:
        return note(f"not there yet: {', '.join(missing)}; the service waits", f"wg-quick up {missing[0]}")
    if found:
        return ok(", ".join(f"{interface.name} ({interface.kind})" for interface in found))
    return note("no interface yet; the service waits for one", _bring_up(host))


def _bring_up(host: Host) -> str:
    if not host.command("wg-quick"):
        return "apt install wireguard-tools"
    in_kernel = host.has("sys/module/wireguard") or host.has(
        f"lib/modules/{os.uname().release}/kernel/{_MODULE}"
    )
    if not in_kernel and not host.command("wireguard-go"):
        return "modprobe wireguard; if the kernel has none: apt install wireguard-go"
    return "wg-quick up wg0"
