# SPDX-License-Identifier: Apache-2.0
"""`exitprint watch`: the status as it changes; live on a terminal, one line a change through a pipe."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.text import Text

from detector.base.answers import EventAnswer, StatusAnswer
from detector.base.errors import NotYet
from detector.client.advice import advice_for
from detector.client.render import line_of, watch_view

Ask = Callable[[], StatusAnswer]
Now = StatusAnswer | str
"""A status object, or why there is none."""


def follow(ask: Ask, interval: float) -> Iterator[Now]:
    """The status every so many seconds, for ever; a service that is away is waited for.

    Raises:
        HostError: the service refuses.
    """
    while True:
        try:
            yield ask()
        except NotYet as error:
            yield str(error)
        time.sleep(interval)


def show_live(seen: Iterator[Now], console: Console, events: Callable[[], Iterable[EventAnswer]]) -> None:
    """Redraw one view for each.

    Args:
        seen: from `follow`.
        console: a terminal.
        events: what changed until now, the newest last.
    """
    with Live(console=console, auto_refresh=False, transient=False, vertical_overflow="crop") as live:
        for now in seen:
            view = (
                Text(now, style="yellow")
                if isinstance(now, str)
                else watch_view(now, events(), advice_for(now), datetime.now(UTC))
            )
            live.update(view, refresh=True)


def changes(seen: Iterator[Now]) -> Iterator[Now]:
    """Those that say something else than the one before."""
    before: object = None
    for now in seen:
        if _essence(now) != before:
            before = _essence(now)
            yield now


def _essence(now: Now) -> object:
    """What a change is: verdicts and what they rest on, not each new flow."""
    if isinstance(now, str):
        return now
    families = {
        name: (one["verdict"], one["predictor"], one["unknown_because"])
        for name, one in now["families"].items()
    }
    return now["verdict"], now["epoch"]["number"], now["waiting"], now["rules_not_understood"], families


def text_line(now: Now) -> str:
    """One line for people."""
    moment = datetime.now(UTC)
    return f"{moment.isoformat(timespec='seconds')} {now}" if isinstance(now, str) else line_of(now, moment)


def json_line(now: Now) -> str:
    """One line for a program: the status object, or {"error": why there is none}."""
    return json.dumps({"error": now} if isinstance(now, str) else now)
