# SPDX-License-Identifier: Apache-2.0
"""The one import of BCC, by the loader alone: LLVM comes with it and leaves with that process."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from detector.base.errors import HostError
from detector.kernel import source

_MEND = "install the distribution's binding with: apt install python3-bpfcc"


def load_bcc() -> Any:
    """The `bcc` module, set up to compile without kernel headers.

    Raises:
        HostError: it is not there, or it is PyPI's package of the same name, which is about lattices.
    """
    # Read by BCC when it compiles: without it, a kernel without headers fails.
    os.environ["BCC_KERNEL_SOURCE"] = str(source.folder())
    try:
        module = importlib.import_module("bcc")
    except ImportError as error:
        raise HostError(
            "Python's binding of BCC is not there",
            f"{_MEND}; in a virtual environment, make it with --system-site-packages",
        ) from error
    if not hasattr(module, "BPF"):
        raise HostError(
            "the package bcc that Python finds is another one of that name, from PyPI",
            f"remove it with: {sys.executable} -m pip uninstall bcc; then {_MEND}",
        )
    return module
