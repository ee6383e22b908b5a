# SPDX-License-Identifier: Apache-2.0
"""`exitprint watch`: the status as it changes; live on a terminal, one line a change through a pipe."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from detector.base.errors import NotYet
from detector.client.advice import advice_for
from detector.client.render import line_of, status_view

Ask = Callable[[], dict[str, Any]]
Now = Mapping[str, Any] | str
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


def show_live(seen: Iterator[Now], console: Console) -> None:
    """Redraw one view for each."""
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for now in seen:
            view = (
                Text(now, style="yellow")
                if isinstance(now, str)
                else status_view(now, advice_for(now), datetime.now(UTC))
            )
            live.update(view, refresh=True)


def changes(seen: Iterator[Now]) -> Iterator[Now]:
    """Those that say something else than the one before."""
    before: object = None
    for now in seen:
        if _warnings(now) != before:
            before = _warnings(now)
            yield now


def _warnings(now: Now) -> object:
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
