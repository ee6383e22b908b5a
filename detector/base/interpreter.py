# SPDX-License-Identifier: Apache-2.0
"""How one of our processes starts another with the same code, wherever that is installed.

-I: neither the environment nor the current folder decides what a process of root's imports. Where the code
is in a folder of its own, which Python does not search (Debian: /usr/share/exitprint), the `__main__.py`
there adds it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import detector

HOME = Path(detector.__file__).parents[1]
"""The folder that the package `detector` is in."""

_PRIVATE = HOME / "__main__.py"


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of ours, like ``python3 -m``, in isolated mode."""
    where = [str(HOME)] if _PRIVATE.is_file() else ["-m"]
    return [sys.executable, "-I", *where, module, *arguments]
