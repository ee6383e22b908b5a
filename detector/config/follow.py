# SPDX-License-Identifier: Apache-2.0
"""Follows `web_config_file` and the files that it names, for the process that serves and cannot open them.

The sensor does it: it is root's process, though without the right to pass over a file's permissions. As with
the configuration, a process of its own reads and validates, and ends.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping

from detector.base.errors import UsageError
from detector.base.interpreter import module_command
from detector.config.model import Config
from detector.config.tls import Mark, WebConfig, marks_of

_PATIENCE = 30.0  # seconds that reading may take
_MAX_LENGTH = 2000  # characters of what is said about the file


class WebFollower:
    """One `web_config_file`.

    Args:
        path: its name.
        guarded: as for `detector.config.web.load_web`.
        marks: of everything that was read when it was accepted last.
    """

    def __init__(self, path: str, marks: Mapping[str, Mark], *, guarded: bool) -> None:
        self._path = path
        self._guarded = guarded
        self._marks = {name: tuple(mark) for name, mark in marks.items()}

    @classmethod
    def of(cls, config: Config, marks: Mapping[str, Mark]) -> WebFollower | None:
        """The follower for a configuration, None where it names no file."""
        if config.web_config_file is None:
            return None
        return cls(config.web_config_file, marks, guarded=config.to_be_guarded)

    def changed(self) -> WebConfig | None:
        """What the file says now; None where nothing has changed.

        Raises:
            UsageError: it is not accepted. It is read again at each look until it is.
        """
        if marks_of(self._marks) == self._marks:
            return None
        told = json.loads(self._read())
        self._marks = {name: tuple(mark) for name, mark in told["marks"].items()}
        return WebConfig.of(told["config"])

    def _read(self) -> str:
        guarded = "guarded" if self._guarded else "open"
        command = module_command("detector.config.web", self._path, guarded)
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UsageError(f"{self._path}: cannot be validated: {type(error).__name__}") from None
        if done.returncode:
            said = done.stderr.strip()[:_MAX_LENGTH]
            raise UsageError(said or f"{self._path}: the validator ended with {done.returncode}")
        return done.stdout
