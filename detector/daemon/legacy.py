# SPDX-License-Identifier: Apache-2.0
"""A process that reads the rules of iptables-legacy for the sensor, and does nothing else.

iptables-legacy-save opens a raw socket. The sensor, which knows the peers, is not to be able to: so another
process keeps CAP_NET_RAW. It knows nothing, takes one byte at a time, which names a family, and answers with
what the tool prints, bounded in time and size. `start` starts it only where a legacy table ``nat`` is there.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time

from detector import logs
from detector.base.errors import HostError, NotYet
from detector.base.family import Family
from detector.base.interpreter import module_command
from detector.config.model import Config
from detector.daemon import privileges
from detector.daemon.confinement import confine_sensor
from detector.nat.live import MAX_OUTPUT, TIMEOUT, LegacySaves, has_legacy_nat, legacy_save

_MODULE = "detector.daemon.legacy"
_ASKED = {Family.IPV4: b"4", Family.IPV6: b"6"}
_SAVED, _FAILED, _LATE = b"s", b"f", b"l"
_HEAD = struct.Struct("<cI")  # what became of it, and how many bytes follow
_MOST = 3 * MAX_OUTPUT  # a byte that is no UTF-8 is replaced by three
_GRACE = 5.0  # seconds beyond those of the tool
_CHUNK = 1 << 16
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def start_reader(config: Config) -> socket.socket | None:
    """Start the process for this network namespace; returns where to ask it.

    None where no legacy table ``nat`` is here, or where we may not open raw sockets ourselves.

    Raises:
        OSError: it cannot be started.
    """
    if not any(map(has_legacy_nat, Family)) or not privileges.holds(privileges.CAP_NET_RAW):
        return None
    ours, theirs = socket.socketpair()
    with theirs:
        end = theirs.fileno()
        command = module_command(_MODULE, str(end), config.log_format, config.log_level)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until it dies of them
        try:
            subprocess.Popen(command, pass_fds=[end], stdin=subprocess.DEVNULL)
        except BaseException:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return ours


def unread(family: Family, _timeout: float) -> str:
    """Stands for the process where there is none.

    Raises:
        HostError: always.
    """
    name = "iptables" if family is Family.IPV4 else "ip6tables"
    needs = "the table and CAP_NET_RAW have to be there when the service starts: restart it"
    raise HostError(f"no process of the service reads {name}-legacy: {needs}")


class Reader:
    """The sensor's end: asks the process."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def __call__(self, family: Family, timeout: float) -> str:
        """What ``iptables-legacy-save`` prints of a family.

        Raises:
            HostError: it cannot be read, or the process is gone.
            NotYet: the tool does not answer in time.
        """
        limit = time.monotonic() + timeout + _GRACE
        try:
            self._end.settimeout(timeout)
            self._end.sendall(_ASKED[family])
            kind, size = _HEAD.unpack(self._received(_HEAD.size, limit))
            if size > _MOST:
                raise OSError
            text = self._received(size, limit).decode()
        except (OSError, UnicodeDecodeError):
            self._end.close()  # whatever it says later would be taken for the answer to something else
            raise HostError("the process that reads it is gone: restart the service") from None
        if kind == _SAVED:
            return text
        what, _, hint = text.partition("\n")
        raise (NotYet if kind == _LATE else HostError)(what, hint)

    def _received(self, size: int, limit: float) -> bytes:
        found = bytearray()
        while len(found) < size:
            self._end.settimeout(max(limit - time.monotonic(), 0.001))
            chunk = self._end.recv(min(size - len(found), _CHUNK))
            if not chunk:
                raise OSError
            found += chunk
        return bytes(found)


def answer(end: socket.socket, save: LegacySaves, timeout: float) -> None:
    """Answer until the other end is closed, or says what is no family."""
    families = {word: family for family, word in _ASKED.items()}
    while (family := families.get(_asked(end))) is not None:
        try:
            kind, text = _SAVED, save(family, timeout)
        except HostError as error:
            kind, text = _LATE if isinstance(error, NotYet) else _FAILED, f"{error.what}\n{error.hint}"
        said = text.encode(errors="replace")
        try:
            end.sendall(_HEAD.pack(kind, len(said)) + said)
        except OSError:
            return


def _asked(end: socket.socket) -> bytes:
    """One byte; nothing when the other end is closed."""
    try:
        return end.recv(1)
    except ConnectionError:  # closed before it had read all
        return b""


def main(descriptor: int, log_format: str, log_level: str) -> int:
    """Answer until the sensor is gone; returns the exit status."""
    logs.configure("legacy", log_format, log_level)  # type: ignore[arg-type]  # checked by who started us
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    end = socket.socket(fileno=descriptor)
    end.set_inheritable(False)
    privileges.disable_core_dumps()
    privileges.die_with_parent()
    privileges.keep_only((privileges.CAP_NET_ADMIN, privileges.CAP_NET_RAW))
    confine_sensor()  # the same walls: it starts a tool that reads, and writes no file
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    answer(end, legacy_save, TIMEOUT)
    return os.EX_OK


if __name__ == "__main__":
    logs.leave(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
