# SPDX-License-Identifier: Apache-2.0
"""Computes passwords in a thread of its own: one at a time, and each client in its turn.

A bcrypt takes a tenth of a second. Whoever guesses takes one core at most, waits in a line of its own, and
keeps neither those who are known already nor those who come from elsewhere.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

from detector.logs import get_logger

_MAX_WAITING = 64
_MAX_OF_CLIENT = 8

_Task = tuple[Any, Callable[[], bool]]


class Checks:
    """What is to be computed, and what came of it.

    Args:
        wake: called in the thread when something is done.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[_Task]] = OrderedDict()
        self._done: deque[tuple[Any, bool]] = deque()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def ask(self, who: Any, client: str, check: Callable[[], bool]) -> bool:
        """Have something computed; returns whether it will be: the line may be too long.

        Args:
            who: is handed out by `done` with the result.
            client: in whose line it waits.
            check: what to compute.
        """
        with self._changed:
            line = self._waiting.get(client, deque())
            if len(line) >= _MAX_OF_CLIENT or sum(map(len, self._waiting.values())) >= _MAX_WAITING:
                return False
            line.append((who, check))
            self._waiting[client] = line
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="passwords", daemon=True)
                self._thread.start()
            self._changed.notify()
        return True

    def done(self) -> Iterator[tuple[Any, bool]]:
        """What was computed since this was asked, with its result."""
        while self._done:
            yield self._done.popleft()

    def stop(self) -> None:
        """Compute nothing more."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def _run(self) -> None:
        while (task := self._next()) is not None:
            who, check = task
            good = False
            try:
                good = check()
            except Exception:
                get_logger().error("a password could not be computed", exc_info=True)
            self._done.append((who, good))
            self._wake()

    def _next(self) -> _Task | None:
        """The next of the client whose turn it is; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return None
            client, line = self._waiting.popitem(last=False)
            task = line.popleft()
            if line:
                self._waiting[client] = line  # behind the others
            return task
