# SPDX-License-Identifier: Apache-2.0
"""Runs inside the VM, once per boot, and writes one line of JSON per fact: `{"fact": ..., ...}`.

Nothing is asserted here: `test_stock_kernels.py` reads the lines and judges. One process does it all, because
under emulation the start of a process is what costs.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SNAT = """
table ip exitprint_vm {
  chain post {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 10.64.0.0/16 snat to 203.0.113.68-203.0.113.126 persistent
  }
}
"""


def release() -> dict[str, object]:
    """Which kernel this is."""
    return {"release": platform.release()}


def wireguard() -> dict[str, object]:
    """Whether the kernel itself makes a WireGuard link."""
    return _command(["ip", "link", "add", "exitprint-wg", "type", "wireguard"])


def nftables() -> dict[str, object]:
    """Whether a source NAT rule over a pool loads."""
    return _command(["nft", "-f", "-"], SNAT)


def btf() -> dict[str, object]:
    """How many bytes of type information the kernel, and its connection tracking module, have."""
    folder = Path("/sys/kernel/btf")
    sizes = {
        name: (folder / name).stat().st_size
        for name in ("vmlinux", "nf_conntrack")
        if (folder / name).exists()
    }
    return {"bytes": sizes}


def bcc() -> dict[str, object]:
    """Which `bcc` the environment's Python imports."""
    from bcc import BPF  # noqa: PLC0415  # the slowest import of all: the other facts do not wait for it

    return {"module": BPF.__module__}


def peers() -> dict[str, object]:
    """How the tests end that need WireGuard in the kernel."""
    options = ["-q", "-p", "no:cacheprovider", "-m", "root"]
    return _command([sys.executable, "-m", "pytest", *options, "tests/peers/test_kernel_wireguard.py"])


FACTS: tuple[Callable[[], dict[str, object]], ...] = (release, wireguard, nftables, btf, bcc, peers)


def main(results: Path) -> None:
    """Write each fact as soon as it is known; one that cannot be told says why."""
    with results.open("w", buffering=1) as out:
        for fact in FACTS:
            print(f"fact: {fact.__name__}", flush=True)
            try:
                told = fact()
            except Exception as error:  # the boot is for all the facts
                told = {"error": f"{type(error).__name__}: {error}"}
            out.write(json.dumps({"fact": fact.__name__, **told}) + "\n")


def _command(command: list[str], text: str = "") -> dict[str, object]:
    done = subprocess.run(command, check=False, input=text, capture_output=True, text=True)
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
