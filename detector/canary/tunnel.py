# SPDX-License-Identifier: Apache-2.0
"""One canary's way through one relay: a namespace with WireGuard in it, and a question to the reflector.

The interface is made where packets to the relay leave, and moved: its own socket stays behind.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from detector.base.errors import HostError
from detector.base.family import Address, Family
from detector.canary.plan import CanaryPlan, Plan, RelayPlan
from detector.config.model import NAMESPACES

_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_UAPI = Path("/var/run/wireguard")
_REQUEST = b"GET / HTTP/1.0\r\n\r\n"
_MOST = 512
_CLONE_NEWNET = 0x40000000


def _run(command: Sequence[str], namespace: str = "") -> None:
    where = ["ip", "netns", "exec", namespace] if namespace else []
    done = subprocess.run([*where, *command], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise HostError(f"{' '.join(command[:3])} failed: {reason}")


def _require(*tools: str) -> None:
    if os.geteuid() != 0:
        raise HostError("a run makes network namespaces, which needs root", "run it with sudo")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        raise HostError(
            f"not found: {', '.join(missing)}", "apt-get install iproute2 wireguard-tools wireguard-go"
        )


def _socket(inside: Path, family: socket.AddressFamily) -> socket.socket:
    """A TCP socket of another namespace: a thread goes there for good, and ends."""

    def made() -> socket.socket:
        descriptor = os.open(inside, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot enter the namespace")
        finally:
            os.close(descriptor)
        return socket.socket(family, socket.SOCK_STREAM)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(made).result()


@contextmanager
def way(relay: RelayPlan, canary: CanaryPlan) -> Iterator[Path]:
    """A namespace in which everything goes through the relay as this canary; it goes when the block ends.

    Raises:
        HostError: it cannot be set up.
    """
    _require("ip", "wg")
    tag = secrets.token_hex(3)
    inside, interface = NAMESPACES / f"exitprint-canary-{tag}", f"xp{tag}"
    _run(["ip", "netns", "add", inside.name])
    process: subprocess.Popen[bytes] | None = None
    try:
        process = _make(interface, relay.namespace)
        wg = ["wg", "set", interface, "private-key", canary.key_file, "peer", relay.public_key]
        _run([*wg, "endpoint", relay.endpoint, "allowed-ips", "0.0.0.0/0,::/0"], relay.namespace)
        _run(["ip", "link", "set", interface, "netns", inside.name], relay.namespace)
        _run(["ip", "link", "set", "lo", "up"], inside.name)
        _run(["ip", "link", "set", interface, "up"], inside.name)
        for family, address in canary.addresses.items():
            flag = [] if family is Family.IPV4 else ["nodad"]
            own = f"{address}/{address.max_prefixlen}"
            _run(["ip", "addr", "add", own, "dev", interface, *flag], inside.name)
            everything = "default" if family is Family.IPV4 else "::/0"
            _run(["ip", "route", "add", everything, "dev", interface], inside.name)
        yield inside
    finally:
        if process is not None:
            process.terminate()
            process.wait(5)
        subprocess.run(["ip", "netns", "del", inside.name], capture_output=True, check=False)


def _make(interface: str, namespace: str) -> subprocess.Popen[bytes] | None:
    """The kernel's WireGuard, or wireguard-go where the kernel has none."""
    try:
        _run(["ip", "link", "add", interface, "type", "wireguard"], namespace)
    except HostError:
        _require("wireguard-go")
        where = ["ip", "netns", "exec", namespace] if namespace else []
        process = subprocess.Popen(
            [*where, "wireguard-go", "-f", interface],
            env={**os.environ, "LOG_LEVEL": "silent"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        limit = time.monotonic() + 10
        while not (_UAPI / f"{interface}.sock").exists():
            if process.poll() is not None or time.monotonic() > limit:
                process.kill()
                raise HostError("wireguard-go did not start", "modprobe wireguard, or tun") from None
            time.sleep(0.02)
        return process
    return None


def ask(inside: Path, source: Address, reflector: Address, plan: Plan) -> Address | None:
    """The exit that the reflector saw, None where no answer came."""
    family = Family.IPV4 if source.version == 4 else Family.IPV6
    try:
        with _socket(inside, _FAMILIES[family]) as link:
            link.settimeout(plan.timeout)
            link.bind((str(source), 0))
            link.connect((str(reflector), plan.port))
            link.sendall(_REQUEST)
            answer = b""
            while len(answer) < _MOST and (part := link.recv(_MOST)):
                answer += part
        return ip_address(answer.split(b"\r\n\r\n", 1)[-1].decode("ascii").strip())
    except (OSError, ValueError):
        return None
