# SPDX-License-Identifier: Apache-2.0
"""Limits of the host that a lab with many peers meets in user-space WireGuard.

Each wireguard-go takes one inotify instance, and listens to every change of every interface in its namespace:
where there are hundreds of both, its socket overflows, and it ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_SYSCTLS = Path("/proc/sys")


@dataclass(slots=True)
class Limit:
    """One limit, raised while it is needed where that is allowed, and put back afterwards.

    Attributes:
        name: as sysctl(8) calls it.
        enough: what it is raised to.
        folder: where the kernel has them.
        before: what it was, None as long as nothing was changed.
    """

    name: str
    enough: int
    folder: Path = _SYSCTLS
    before: int | None = None

    def make_room(self) -> None:
        """Raise it; where that is not allowed, what fails says how."""
        current = self._read()
        if current is not None and current < self.enough and self._write(self.enough):
            self.before = current

    def put_back(self) -> None:
        """Undo it, unless somebody else has set it since."""
        if self.before is not None and self._read() == self.enough:
            self._write(self.before)
        self.before = None

    def advice(self) -> str:
        """What to do where there is no room."""
        return f"{self.name} may be too low ({self._read()}): sysctl -w {self.name}={self.enough}"

    @property
    def _file(self) -> Path:
        return self.folder / self.name.replace(".", "/")

    def _read(self) -> int | None:
        try:
            return int(self._file.read_text())
        except (OSError, ValueError):
            return None

    def _write(self, value: int) -> bool:
        try:
            self._file.write_text(f"{value}\n")
        except OSError:
            return False
        return True


def inotify_instances() -> Limit:
    """For as long as the processes live; enough for the largest lab, and for several of them at once."""
    return Limit("fs.inotify.max_user_instances", 16_384)


def socket_buffers() -> Limit:
    """While the processes open their sockets, which keep what they got."""
    return Limit("net.core.rmem_default", 1 << 26)
