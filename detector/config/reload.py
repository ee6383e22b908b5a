# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: read the configuration file again, and take over what can change while the service runs.

The file is validated in a process of its own that ends at once: neither the validator nor the YAML parser is
ever in the sensor's memory. A file that is not accepted changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

from detector.base.errors import EXIT_USAGE, UsageError
from detector.base.interpreter import module_command
from detector.config.keys import keys_of
from detector.config.model import Config

LIVE = tuple(name for name, one in keys_of(Config).items() if one.live)
"""Keys that need no restart; every other one does."""

_PATIENCE = 30.0  # seconds that reading a file may take
_CHUNK = 4096
_MAX_LENGTH = 2000  # characters of what is said about a file


@dataclass(frozen=True, slots=True)
class Reload:
    """How the last reload went.

    Attributes:
        good: the file was accepted.
        at: when the last accepted one was read, in seconds since 1970.
        restart: keys that differ from what is in use, and need a restart.
    """

    good: bool = True
    at: float = 0.0
    restart: tuple[str, ...] = ()

    def as_message(self) -> dict[str, Any]:
        """For the channel."""
        return {"good": self.good, "at": self.at, "restart": list(self.restart)}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Reload:
        """The inverse of `as_message`."""
        return cls(told["good"], told["at"], tuple(told["restart"]))


@dataclass(frozen=True, slots=True)
class Merged:
    """What a new file comes to.

    Attributes:
        config: the one to go on with.
        changed: keys that were taken over.
        restart: keys that differ and were not.
    """

    config: Config
    changed: tuple[str, ...]
    restart: tuple[str, ...]


def merge(running: Config, wanted: Config) -> Merged:
    """Take over what can change while the service runs, and name the rest."""
    differ = tuple(
        one.name for one in fields(Config) if getattr(running, one.name) != getattr(wanted, one.name)
    )
    changed = tuple(name for name in differ if name in LIVE)
    taken = {name: getattr(wanted, name) for name in changed}
    return Merged(replace(running, **taken), changed, tuple(name for name in differ if name not in LIVE))


def read_config(path: Path) -> Config:
    """The configuration in a file, validated in a child process.

    Raises:
        UsageError: the file is not accepted.
    """
    command = module_command("detector.config.command", str(path))
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = f"{path}: cannot be validated: {type(error).__name__}"
        raise UsageError(reason, "send SIGHUP again") from None
    if done.returncode not in (0, EXIT_USAGE):  # what it says then is not for people
        reason = f"{path}: the validator does not run: it ended with {done.returncode}"
        raise UsageError(
            reason, "user 0 without further capabilities must be able to read the code, or restart"
        )
    if done.returncode:
        said = done.stderr.strip()[:_MAX_LENGTH]
        raise UsageError(said, f"mend it, try `exitprint check-config {path}`, then send SIGHUP again")
    return Config.from_json(done.stdout)


class SighupPipe:
    """SIGHUP, as something to wait on: it never interrupts what is being done."""

    def __init__(self) -> None:
        self._reads, self._writes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._asked = False
        signal.signal(signal.SIGHUP, self._note)
        signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """The descriptor, to wait on."""
        return self._reads

    def taken(self) -> bool:
        """Whether there was one since this was asked."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reads, _CHUNK)
        asked, self._asked = self._asked, False
        return asked

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
