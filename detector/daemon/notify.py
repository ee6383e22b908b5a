# SPDX-License-Identifier: Apache-2.0
"""Tells systemd that the service is up, and that both of its processes go on (sd_notify(3)).

The sensor is the service's main process and speaks for both: what it says rests on having heard of the
aggregator.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, MutableMapping

BEAT = 5.0
"""Seconds after which each process says at least once that it goes on."""

_SILENT = 6 * BEAT


class Supervisor:
    """The other end is systemd, or nobody.

    Args:
        environ: the environment, from which the names of systemd's variables are taken, so that no command
        inherits
            them.
        now: seconds, of a clock that only goes forward.
    """

    def __init__(self, environ: MutableMapping[str, str], now: float) -> None:
        self._socket = _connected(environ.pop("NOTIFY_SOCKET", ""))
        self._wants_beats = _wants_beats(environ)
        for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
            environ.pop(name, None)
        self._heard: float | None = None
        self._ready = False
        self._told = now

    def heard(self, now: float) -> None:
        """The aggregator serves, and goes on."""
        self._heard = now

    def beat(self, now: float) -> None:
        """The sensor goes on: tell it, if the aggregator does, too."""
        if self._heard is None or now - self._heard > _SILENT:
            return
        if not self._ready:
            self._ready = True
            self._tell("READY=1")
        if self._wants_beats and now - self._told >= BEAT:
            self._told = now
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The service ends because somebody asked it to."""
        self._tell("STOPPING=1")

    def _tell(self, what: str) -> None:
        # systemd that does not listen any more is no reason to end.
        with contextlib.suppress(OSError):
            if self._socket:
                self._socket.send(what.encode(), socket.MSG_NOSIGNAL)


def _connected(name: str) -> socket.socket | None:
    """Systemd's socket; None where nobody wants to know."""
    if not name.startswith(("/", "@")):
        return None
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        end.connect("\0" + name[1:] if name.startswith("@") else name)
    except OSError:
        end.close()
        return None
    return end


def _wants_beats(environ: Mapping[str, str]) -> bool:
    """Whether systemd has a watchdog for this very process."""
    return bool(environ.get("WATCHDOG_USEC")) and environ.get("WATCHDOG_PID", str(os.getpid())) == str(
        os.getpid()
    )
