# SPDX-License-Identifier: Apache-2.0
"""Who answers while the service cannot start yet: the socket and the pages say what is waited for.

It runs as the aggregator's user, knows nothing and nobody, and ends when the aggregator takes its place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from types import FrameType

from detector import logs
from detector.base.errors import UsageError
from detector.daemon import codec, privileges
from detector.daemon.aggregator import hosts_of, web_access
from detector.daemon.confinement import confine_aggregator
from detector.daemon.messages import AggregatorSpec
from detector.publish.exporter import Exposition
from detector.publish.http import server as web
from detector.publish.http.listening import page_of
from detector.publish.inspect import socket as inspect
from detector.publish.inspect.access import Access
from detector.publish.inspect.handlers import handlers
from detector.publish.page.render import View, render
from detector.publish.snapshot import About, Snapshot, samples

CONNTRACK = "no connection tracking in this kernel yet: modprobe nf_conntrack, or load a NAT rule"

_ALIVE = True, "waiting"
_NOT_READY = False, CONNTRACK


def pages_of(now: Snapshot, about: About) -> web.Pages:
    """What is served meanwhile."""

    def page(refreshing: bool) -> bytes:
        return render(View(now, about, _ALIVE, _NOT_READY, time.time(), refreshing)).encode()

    return web.Pages(Exposition(lambda: (now, about), samples), lambda: _ALIVE, lambda: _NOT_READY, page)


def serve(spec: AggregatorSpec) -> None:
    """Give up root's rights and answer in the background."""
    now, access = Snapshot(waiting=CONNTRACK), None if spec.web is None else web_access(spec.web)
    listener = socket.socket(fileno=spec.listener)
    secured = access is not None and access.context is not None
    about = About(spec.config, "", page_of(listener, secured=secured))
    pages = pages_of(now, about)
    web.rehearse(pages)
    privileges.drop_privileges(spec.user)
    privileges.disable_core_dumps()
    privileges.die_with_parent()
    answers = handlers(lambda: now, lambda: about)
    for answer in answers.values():
        with contextlib.suppress(UsageError):  # one that wants arguments
            answer({})
    confine_aggregator()
    web.serve(listener, pages, access, hosts_of(spec.config))
    if spec.inspect is not None:
        who = Access(spec.access.owner, spec.access.group, spec.access.mode)
        inspect.serve(socket.socket(fileno=spec.inspect), answers, who)


def _stop(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)  # nothing is to be put in order, and no thread is to be waited for


def main(descriptor: int) -> int:
    """Serve until a signal comes."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    with os.fdopen(descriptor, "rb") as file:
        spec = codec.decode(AggregatorSpec, file.read())
    logs.configure("waiting", spec.config.log_format, spec.config.log_level)
    serve(spec)
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
