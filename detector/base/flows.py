# SPDX-License-Identifier: Apache-2.0
"""Classes of flows, and how long ago a flow's fellow was: the units that evidence is kept in.

The numbers are those of bpf/tables.h.
"""

from __future__ import annotations

from enum import IntEnum


class FlowClass(IntEnum):
    """What a flow is, as far as rules choose by it: a class that leaks alone is a leak of everybody in it."""

    TCP = 0
    QUIC = 1  # UDP to port 443
    DNS = 2  # UDP or TCP to port 53 or 853
    OTHER = 3


class Lag(IntEnum):
    """How far a flow is from the earlier flow of the same peer that it is compared with.

    An exit that is kept for seconds or minutes is no pinning: what leaks shows at `PANES` or `SESSIONS`.
    """

    DRAIN = 0  # within one look at the kernel's tables, seconds
    PANE = 1  # later, in the same session and pane
    PANES = 2  # in another pane of the window, the session still goes on
    SESSIONS = 3  # in another session of the peer


FLOW_CLASSES = tuple(FlowClass)
LAGS = tuple(Lag)
