# SPDX-License-Identifier: Apache-2.0
"""What conntrack itself lists: the truth that the tables of the kernel program are compared with."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from detector.base.errors import HostError
from detector.base.family import Address, Family, family_of
from detector.lab.namespaces import Namespace, entered

_BUFFER = 8 << 20
_PATIENCE = 30.0
_SOCKET = re.compile(r"socket:\[(\d+)\]")
# "ipv4  2 tcp  6 3599 CLOSE src=… dst=… sport=… dport=… [UNREPLIED] src=… dst=… sport=… dport=… …"
_ENTRY = re.compile(r"^(?:ipv[46] +\d+ +)?(\w+) .*? src=(\S+) dst=(\S+) .*? src=(\S+) dst=(\S+) ")


class Pair(NamedTuple):
    """What entries are counted by; an exit equal to the tunnel address means: not translated."""

    tunnel: Address
    exit: Address
    family: Family
    protocol: str


@dataclass(frozen=True, slots=True)
class Truth:
    """Conntrack entries of the peers, counted."""

    counts: Counter[Pair]

    @property
    def flows(self) -> int:
        """All entries."""
        return self.counts.total()

    def pairs(self) -> Counter[tuple[Address, Address]]:
        """Entries per (tunnel address, exit address), both protocols together."""
        pairs: Counter[tuple[Address, Address]] = Counter()
        for pair, count in self.counts.items():
            pairs[pair.tunnel, pair.exit] += count
        return pairs

    def by(self, family: Family | None = None, protocol: str | None = None) -> int:
        """Entries of a family, of a protocol, or of both."""
        return sum(
            count
            for pair, count in self.counts.items()
            if family in {None, pair.family} and protocol in {None, pair.protocol}
        )

    def untranslated(self) -> int:
        """Entries that kept the tunnel address."""
        return sum(count for pair, count in self.counts.items() if pair.tunnel == pair.exit)


def count_entries(lines: Iterable[str], tunnels: Collection[Address]) -> Counter[Pair]:
    """Count the lines of ``conntrack -L`` whose source is one of these tunnel addresses."""
    texts = Counter(match.group(1, 2, 5) for line in lines if (match := _ENTRY.match(line)))
    counts: Counter[Pair] = Counter()
    for (protocol, source, exit_text), count in texts.items():
        tunnel = ip_address(source)
        if tunnel in tunnels:
            counts[Pair(tunnel, ip_address(exit_text), family_of(tunnel), protocol)] += count
    return counts


def read_truth(namespace: Namespace, tunnels: Collection[Address]) -> Truth:
    """List the conntrack entries of a namespace.

    Raises:
        HostError: ``conntrack`` could not list them.
    """
    counts: Counter[Pair] = Counter()
    for family in Family:
        done = _conntrack(namespace, "-L", "-f", family.value, "-o", "extended")
        counts += count_entries(done.splitlines(), tunnels)
    return Truth(counts)


def forget(namespace: Namespace) -> None:
    """Remove every conntrack entry of a namespace."""
    for family in Family:
        _conntrack(namespace, "-F", "-f", family.value)


def _conntrack(namespace: Namespace, *arguments: str) -> str:
    with entered(namespace):
        done = subprocess.run(["conntrack", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"conntrack {arguments[0]} failed", (done.stderr.strip().splitlines() or [""])[-1])
    return done.stdout


@dataclass(slots=True)
class Recording:
    """What became of listening to conntrack's events.

    Attributes:
        lost: messages that the kernel dropped because the listener was too slow; known at the end.
    """

    lost: int = 0


@contextmanager
def recorded(namespace: Namespace, path: Path) -> Iterator[Recording]:
    """Write every new entry, as ``conntrack -E -e NEW -o timestamp`` prints it, to a file meanwhile.

    Raises:
        HostError: ``conntrack`` does not listen.
    """
    recording = Recording()
    with path.open("wb") as file, entered(namespace):
        process = subprocess.Popen(
            ["conntrack", "-E", "-e", "NEW", "-o", "timestamp", "-b", str(_BUFFER)],
            stdout=file,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
    try:
        _wait(lambda: _listener(namespace, process.pid) is not None, "conntrack does not listen for events")
        yield recording
        _wait(lambda: _waiting(namespace, process.pid) == 0, "conntrack does not read its events")
        recording.lost = (_listener(namespace, process.pid) or _Listener(0, 0)).drops
    finally:
        process.terminate()
        process.wait()


class _Listener(NamedTuple):
    waiting: int
    drops: int


def _listener(namespace: Namespace, pid: int) -> _Listener | None:
    """The state of a process's netlink socket that is a member of a group, from ``/proc/net/netlink``."""
    inodes = _socket_inodes(pid)
    with entered(namespace):
        rows = Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]
    for row in rows:
        _, _, _, groups, waiting, _, _, _, drops, inode = row.split()
        if inode in inodes and int(groups, 16):
            return _Listener(int(waiting), int(drops))
    return None


def _socket_inodes(pid: int) -> set[str]:
    """What tells a process's sockets; a netlink socket's port id is the process id for the first one only."""
    inodes = set()
    with suppress(FileNotFoundError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            if match := _SOCKET.match(str(path.readlink())):
                inodes.add(match[1])
    return inodes


def _waiting(namespace: Namespace, pid: int) -> int:
    listener = _listener(namespace, pid)
    return listener.waiting if listener else 0


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise HostError(otherwise)
        time.sleep(0.01)
