# SPDX-License-Identifier: Apache-2.0
"""What must have happened before any test module is imported."""

from __future__ import annotations

import functools
import inspect
import signal

# Whole, as tests use more of it: `detector.wireguard.netlink` would import parts of it without the package.
import pyroute2  # noqa: F401
import pytest
from click.testing import CliRunner
from hypothesis import settings

# An example that takes long says that the machine is busy, and nothing of what is tested.
settings.register_profile("exitprint", deadline=None)
settings.load_profile("exitprint")

# `make test &` in a script: a shell starts it with SIGINT ignored, which all that tests start would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before click 8.2 (Debian 12 and 13) a runner mixed standard error into the output unless told otherwise.
if "mix_stderr" in inspect.signature(CliRunner).parameters:
    CliRunner.__init__ = functools.partialmethod(CliRunner.__init__, mix_stderr=False)  # type: ignore[method-assign,assignment]

_LONG = 3600  # seconds for what boots machines or installs systems


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the long ones their own limit of time."""
    for item in items:
        if item.get_closest_marker("vm") or item.get_closest_marker("package"):
            item.add_marker(pytest.mark.timeout(_LONG))
