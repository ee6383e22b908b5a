# SPDX-License-Identifier: Apache-2.0
"""The socket that the pages are served on, for the process that opens it and serves nothing itself."""

from __future__ import annotations

import os
import socket

from detector.base.errors import HostError
from detector.config.model import Listen

_BACKLOG = 1024  # those that come in a moment in which we judge; the kernel keeps them
_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  listens everywhere, so here too


def listen(where: Listen) -> socket.socket:
    """A listening socket.

    Raises:
        HostError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    try:
        return socket.create_server((where.host, where.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        number = error.errno or 0  # a resolver's are negative; the text of its own holds the address again
        reason = (os.strerror(number) if number > 0 else error.strerror or str(error)).lower()
        raise HostError(
            f"cannot listen on {where}: {reason}", "choose another address with the key listen"
        ) from error


def page_of(listener: socket.socket, *, secured: bool) -> str:
    """Where a browser on this machine finds the page that is served on a socket."""
    host, port = listener.getsockname()[:2]
    host = _LOCAL.get(host, host)
    return f"{'https' if secured else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
