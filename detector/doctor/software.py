# SPDX-License-Identifier: Apache-2.0
"""What has to be installed: the right bcc, tools, a user."""

from __future__ import annotations

import importlib.machinery
import pwd
import sys
from pathlib import Path

from detector.doctor.check import Finding, Host, fail, note, ok

_DISTRIBUTION = "usr/lib/python3/dist-packages/bcc"
_INSTALL = "apt install python3-bpfcc"


def bcc(host: Host) -> Finding:
    """The `bcc` that Python finds is the distribution's, not PyPI's package about lattices."""
    spec = importlib.machinery.PathFinder.find_spec("bcc", list(host.modules))
    installed = host.has(_DISTRIBUTION)
    if spec is None and installed:
        return fail("python3-bpfcc is installed, but this Python does not see it", _see_distribution(host))
    if spec is None:
        return fail("no Python binding of BCC", _INSTALL)
    place = Path(next(iter(spec.submodule_search_locations or ()), spec.origin or ""))
    if not (place / "libbcc.py").exists():
        mend = f"{sys.executable} -m pip uninstall -y bcc" + ("" if installed else f" && {_INSTALL}")
        return fail(f"{place} is PyPI's bcc, a package about lattices", mend)
    return ok(f"{place}")


def nat_tools(host: Host) -> Finding:
    """A command that lists the NAT rules, unless the configuration names the exits."""
    tools = [name for name in ("nft", "iptables-save", "ip6tables-save") if host.command(name)]
    if tools:
        return ok(", ".join(tools))
    if host.config.exits:
        return note(
            "neither nft nor iptables-save, but the configuration names the exits", "apt install nftables"
        )
    return fail(
        "neither nft nor iptables-save: the exits cannot be read from the NAT rules", "apt install nftables"
    )


def user(host: Host) -> Finding:
    """The user without privileges that the aggregator runs as."""
    wanted = host.config.user
    if _exists(wanted):
        return ok(wanted)
    mend = f"useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {wanted}"
    if _exists("nobody"):
        return note(f"no user {wanted}; the aggregator runs as nobody", mend)
    return fail(f"neither a user {wanted} nor nobody", mend)


def canaries(host: Host) -> Finding:
    """The peers that the configuration calls canaries: what is told of them is told by name."""
    declared = host.config.canaries
    if not declared.peers:
        return ok("none declared")
    return ok(f"{len(declared.peers)} in {', '.join(declared.range)}: {', '.join(declared.names)}")


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _see_distribution(host: Host) -> str:
    """How to let our Python see the distribution's modules, which go with the distribution's Python."""
    make = "/usr/bin/python3 -m venv --system-site-packages"
    if sys.prefix == sys.base_prefix:
        return f"{make} .venv && .venv/bin/pip install exitprint"
    ours = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if (host.root / "usr/bin/python3").resolve().name == ours:
        return f"{make} --upgrade {sys.prefix}"
    return f"{make} --clear {sys.prefix} && {sys.prefix}/bin/pip install exitprint"
