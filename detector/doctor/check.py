# SPDX-License-Identifier: Apache-2.0
"""What a check is: a small function that looks at the host and says one thing about it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from detector.base.errors import ExitprintError
from detector.config.model import Config


class Status(StrEnum):
    """How a check ended; only FAIL keeps the service from running."""

    OK = "ok"
    NOTE = "note"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor.

    Attributes:
        text: what was found, in one line.
        mend: a command to paste, or what else to do; empty where there is nothing to mend.
    """

    status: Status
    text: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """Where checks look.

    Attributes:
        config: what the service would be told.
        root: the file tree; another one than / only in tests.
        commands: folders with commands, as in PATH.
        modules: folders with Python modules, as in sys.path.
    """

    config: Config = field(default_factory=Config)
    root: Path = Path("/")
    commands: str = field(default_factory=lambda: os.environ.get("PATH", os.defpath))
    modules: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))

    def read(self, path: str) -> str | None:
        """A small file's text without the white space around it, or None if it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return None

    def has(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        return (self.root / path).exists()

    def command(self, name: str) -> str | None:
        """Where a command is, or None; administrators' folders count also when PATH lacks them."""
        return shutil.which(
            name, path=f"{self.commands}:/usr/sbin:/sbin" if self.root == Path("/") else self.commands
        )


Check = Callable[[Host], Finding]


def ok(text: str) -> Finding:
    """Nothing to do."""
    return Finding(Status.OK, text)


def note(text: str, mend: str = "") -> Finding:
    """The service runs; this is good to know."""
    return Finding(Status.NOTE, text, mend)


def fail(text: str, mend: str) -> Finding:
    """The service cannot run."""
    return Finding(Status.FAIL, text, mend)


def examine(host: Host, checks: Iterable[tuple[str, Check]]) -> list[tuple[str, Finding]]:
    """Run checks by name. One that breaks is a finding, too."""
    return [(name, _run(check, host)) for name, check in checks]


def _run(check: Check, host: Host) -> Finding:
    try:
        return check(host)
    except ExitprintError as error:
        return fail(error.what, error.hint)
    except Exception as error:  # the other checks go on
        return note(f"the check itself failed ({type(error).__name__})", "report it")
