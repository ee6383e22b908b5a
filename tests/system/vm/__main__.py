# SPDX-License-Identifier: Apache-2.0
"""Runs a command under a stock kernel: `python -m tests.system.vm 6.1 -- COMMAND...`."""

from __future__ import annotations

import argparse
import sys

from detector.base.errors import ExitprintError
from tests.system.vm import kernels, machine


def main() -> int:
    """Boot the named kernel, run the command, return its exit status."""
    lines = {kernel.line: kernel for kernel in kernels.STOCK_KERNELS}
    parser = argparse.ArgumentParser(prog="python -m tests.system.vm", description=__doc__)
    parser.add_argument("kernel", choices=lines)
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--seconds", type=float, default=600.0, help="time limit")
    parser.add_argument("command", nargs="+")
    chosen = parser.parse_args()
    size = machine.Machine(chosen.memory, chosen.cpus, chosen.seconds)
    try:
        outcome = machine.run(kernels.fetch(lines[chosen.kernel]), chosen.command, size, sys.stdout.write)
    except ExitprintError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    for name, text in outcome.files.items():
        print(f"--- {name}\n{text}")
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())
