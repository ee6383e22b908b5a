# SPDX-License-Identifier: Apache-2.0
"""A limit of the host that a lab with many peers meets: each wireguard-go takes one inotify instance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
_ENOUGH = 16_384  # for the largest lab, and for several of them at once


@dataclass(slots=True)
class InotifyLimit:
    """The limit, raised while a lab is there where that is allowed, and put back afterwards.

    Attributes:
        file: where the kernel has it.
        before: what it was, None as long as nothing was changed.
    """

    file: Path = INOTIFY
    before: int | None = None

    def make_room(self) -> None:
        """Raise it; where that is not allowed, what fails says how."""
        current = self._read()
        if current is not None and current < _ENOUGH and self._write(_ENOUGH):
            self.before = current

    def put_back(self) -> None:
        """Undo it, unless somebody else has set it since."""
        if self.before is not None and self._read() == _ENOUGH:
            self._write(self.before)
        self.before = None

    def advice(self) -> str:
        """What to do where there is no room."""
        return (
            f"too few inotify instances ({self._read()})? sysctl -w fs.inotify.max_user_instances={_ENOUGH}"
        )

    def _read(self) -> int | None:
        try:
            return int(self.file.read_text())
        except (OSError, ValueError):
            return None

    def _write(self, value: int) -> bool:
        try:
            self.file.write_text(f"{value}\n")
        except OSError:
            return False
        return True
