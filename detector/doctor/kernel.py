# SPDX-License-Identifier: Apache-2.0
"""What the kernel offers and allows: BTF, hooks, lockdown, capabilities."""

from __future__ import annotations

import os

from detector.doctor.check import Finding, Host, fail, note, ok

# What start-up takes: change users, drop the rest, attach, enter a namespace (linux/capability.h).
_CAPABILITIES = {
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_ADMIN": 21,
}
CONFIDENTIALITY = "confidentiality"
UNLOCK = "boot with lockdown=integrity (or none) on the kernel command line"
CONNTRACK = "modprobe nf_conntrack"
STOCK_KERNEL = "boot the distribution's kernel: apt install linux-image-$(dpkg --print-architecture)"


def btf(host: Host) -> Finding:
    """The kernel describes its types, so that nothing has to be compiled against headers."""
    if not host.has("sys/kernel/btf/vmlinux"):
        return fail("no /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)", STOCK_KERNEL)
    return ok("/sys/kernel/btf/vmlinux")


def hooks_by_symbols(host: Host) -> Finding:
    """Which hooks the kernel seems to have, judged without attaching anything."""
    symbols = _symbols(host, {"bpf_nf_link_attach", "__nf_conntrack_confirm"})
    kprobes = host.has("sys/bus/event_source/devices/kprobe")
    found = []
    if "bpf_nf_link_attach" in symbols:
        found.append("netfilter")
    if kprobes and "__nf_conntrack_confirm" in symbols:
        found.append("kprobe")
    if found:
        return ok(f"the kernel has {' and '.join(found)}; not tried, since only root can attach")
    if kprobes:
        return note(
            "no netfilter link; kprobes are there, and conntrack is not yet: the service waits", CONNTRACK
        )
    return fail(
        "neither netfilter links (CONFIG_NETFILTER_BPF_LINK) nor kprobes (CONFIG_KPROBES)", STOCK_KERNEL
    )


def lockdown(host: Host) -> Finding:
    """Lockdown for confidentiality keeps eBPF from reading kernel memory."""
    text = host.read("sys/kernel/security/lockdown")
    if text is None:
        return ok("not built in, or securityfs is not mounted")
    mode = lockdown_mode(host)
    if mode == CONFIDENTIALITY:
        return fail("confidentiality: eBPF programs cannot read kernel memory", UNLOCK)
    return ok(mode)


def lockdown_mode(host: Host) -> str:
    """The mode of lockdown, empty where it is not known."""
    text = host.read("sys/kernel/security/lockdown") or ""
    return text.partition("[")[2].partition("]")[0] or text


def capabilities(host: Host) -> Finding:
    """Start-up takes root's capabilities; all but one are given up afterwards."""
    if missing := missing_capabilities(host):
        return fail(f"this process lacks {', '.join(missing)}", how_to_gain(missing))
    return ok("this process has what start-up takes")


def missing_capabilities(host: Host) -> list[str]:
    """What start-up takes and this process has not."""
    held = _effective(host.read("proc/self/status") or "")
    return [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]


def how_to_gain(missing: list[str]) -> str:
    """For a user: become root. Root without them is in a container, or in a unit that takes them away."""
    if os.geteuid():
        return "sudo exitprint doctor"
    names = " ".join(missing)
    return f"give them to the container (--cap-add) or to the unit (CapabilityBoundingSet): {names}"


def perf_event_paranoid(host: Host) -> Finding:
    """Debian's level 3 leaves kprobes to CAP_SYS_ADMIN, which the service has while it starts."""
    level = host.read("proc/sys/kernel/perf_event_paranoid")
    if level is None:
        return note("no perf events in this kernel: the kprobe hook is out, the netfilter one is not")
    if level.lstrip("-").isdigit() and int(level) >= 3:
        return ok(f"{level}: kprobes take CAP_SYS_ADMIN, CAP_PERFMON is not enough")
    return ok(level)


def unprivileged_bpf(host: Host) -> Finding:
    """The aggregator reads the tables without a capability; others need not be able to load programs."""
    level = host.read("proc/sys/kernel/unprivileged_bpf_disabled")
    if level is None:
        return note("no kernel.unprivileged_bpf_disabled: this kernel may lack the bpf() system call")
    if level == "0":
        return note("0: any user may load eBPF programs", "sysctl -w kernel.unprivileged_bpf_disabled=2")
    return ok(level)


def _symbols(host: Host, wanted: set[str]) -> set[str]:
    found: set[str] = set()
    try:
        with (host.root / "proc/kallsyms").open() as lines:
            for line in lines:
                found |= wanted.intersection(line.split(maxsplit=3)[2:3])
    except OSError:
        pass
    return found


def _effective(status: str) -> int:
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
