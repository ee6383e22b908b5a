# SPDX-License-Identifier: Apache-2.0
"""Attaches the kernel program for a moment, with tiny tables: the only way to know which hook works."""

from __future__ import annotations

import os

from detector.base.errors import HostError
from detector.config.model import Tables
from detector.doctor.check import Finding, Host, fail, note, ok
from detector.doctor.kernel import (
    CONFIDENTIALITY,
    CONNTRACK,
    STOCK_KERNEL,
    UNLOCK,
    hooks_by_symbols,
    how_to_gain,
    lockdown_mode,
    missing_capabilities,
)
from detector.doctor.network import conntrack_is_loaded
from detector.kernel.loader import load

_TINY = Tables(peers=16, pairs=16, destinations=16, ports=16, panes=2)


def hooks(host: Host) -> Finding:
    """The hook that the service would use, and why another one was refused. Without root it is a guess."""
    if os.geteuid():
        return hooks_by_symbols(host)
    if missing := missing_capabilities(host):
        return fail(f"not tried without {', '.join(missing)}", how_to_gain(missing))
    if not conntrack_is_loaded(host):
        return note("not tried yet: the service waits for connection tracking first", CONNTRACK)
    try:
        loaded = load(host.config.hook, _TINY, host.config.session_gap)
    except HostError as error:
        return fail(error.what, _mend(host, error))
    loaded.close()
    refused = "".join(f"; {hook} would not do: {reason}" for hook, reason in loaded.refused.items())
    return ok(f"{loaded.hook} would be used{refused}")


def _mend(host: Host, error: HostError) -> str:
    if lockdown_mode(host) == CONFIDENTIALITY:
        return UNLOCK
    return STOCK_KERNEL if "doctor" in error.hint else error.hint or STOCK_KERNEL
