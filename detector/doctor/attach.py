# SPDX-License-Identifier: Apache-2.0
"""Attaches the kernel program for a moment, with tiny tables: the only way to know which hook works."""

from __future__ import annotations

import os

from detector.base.errors import HostError
from detector.config.model import Tables
from detector.doctor.check import Finding, Host, fail, ok
from detector.doctor.kernel import STOCK_KERNEL, hooks_by_symbols
from detector.doctor.network import conntrack_is_loaded
from detector.kernel.loader import load

_TINY = Tables(peers=16, pairs=16, destinations=16, ports=16, panes=2)


def hooks(host: Host) -> Finding:
    """The hook that the service would use, and why another one was refused. Without root it is a guess."""
    if os.geteuid():
        return hooks_by_symbols(host)
    try:
        loaded = load(host.config.hook, _TINY, host.config.session_gap)
    except HostError as error:
        return fail(error.what, _mend(host, error))
    loaded.close()
    refused = "".join(f"; {hook} would not do: {reason}" for hook, reason in loaded.refused.items())
    return ok(f"{loaded.hook} would be used{refused}")


def _mend(host: Host, error: HostError) -> str:
    if not conntrack_is_loaded(host):
        return "modprobe nf_conntrack && exitprint doctor"
    return STOCK_KERNEL if "doctor" in error.hint else error.hint or STOCK_KERNEL
