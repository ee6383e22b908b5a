# SPDX-License-Identifier: Apache-2.0
"""What the walls around a process let through and what not, tried in processes that are thrown away."""

from __future__ import annotations

import subprocess
import sys

import pytest

from detector.daemon import confinement

PRELUDE = """
import ctypes, gzip, json, mmap, os, select, signal, socket, subprocess, sys, threading, time
from pathlib import Path
from detector import logs
from detector.daemon import confinement
logs.configure("aggregator", "json")
pair = socket.socketpair()
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
memory = os.memfd_create("x")
os.truncate(memory, 4096)
libc = ctypes.CDLL(None, use_errno=True)
def refused(step):
    try:
        step()
    except OSError as error:
        return error.errno in (1, 13)
    return False
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
"""

try:
    confinement.Filter(0x7FFF0000)
    confinement._landlock(444, None, 0, 1)
    HERE = ""
except OSError as error:
    HERE = f"NO WALLS HERE: {error.strerror}"
pytestmark = pytest.mark.skipif(bool(HERE), reason=HERE or "there are walls")


def run(code: str) -> str:
    """What a process says that runs this code."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "missing" not in done.stderr
    return done.stdout


REFUSED_TO_AGGREGATOR = {
    "open a file": 'open("/etc/passwd")',
    "write a file": 'open("/tmp/exitprint-never", "w")',
    "list a folder": 'os.listdir("/")',
    "read another process": 'open("/proc/1/status")',
    "make a socket": "socket.socket()",
    "make a netlink socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "make a local socket": "socket.socket(socket.AF_UNIX)",
    "make a pair": "socket.socketpair()",
    "connect": "pair[0].connect(b'x')",
    "start a program": 'subprocess.run(["/bin/true"])',
    "become another program": 'os.execv("/bin/true", ["true"])',
    "fork": "os.fork()",
    "stop its parent": "os.kill(os.getppid(), 0)",
    "map memory that can be run": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "look into a map by a call": "call(321, 1, 0, 0)",
    "load a program into the kernel": "call(321, 5, 0, 0)",
    "attach one": "call(321, 28, 0, 0)",
    "freeze a map": "call(321, 22, 0, 0)",
    "enter a namespace": "call(308, 0, 0)",
    "trace": "call(101, 0, 0, 0, 0)",
    "mount": "call(165, 0, 0, 0, 0, 0)",
    "loosen the filter": "call(157, 22, 2, 0, 0, 0)",
}


@pytest.mark.parametrize("what", REFUSED_TO_AGGREGATOR)
def test_a_taken_over_aggregator_cannot(what: str) -> None:
    """Each is refused with an error, and was possible before."""
    step = REFUSED_TO_AGGREGATOR[what]
    assert run(f"confinement.confine_aggregator()\nprint(refused(lambda: {step}))") == "True\n"


def test_the_aggregator_can_do_its_work() -> None:
    """Threads, sockets that it has, memory, clocks, what procfs says of itself, and its end."""
    code = """
confinement.confine_aggregator()
done = []
thread = threading.Thread(target=lambda: done.append(1)); thread.start(); thread.join()
pair[0].send(b"x"); assert pair[1].recv(1) == b"x"
end, _ = listener.accept(); end.send(b"y"); assert client.recv(1) == b"y"
select.select([pair[1]], [], [], 0.01); poller = select.epoll(); poller.close()
with mmap.mmap(memory, 4096) as table: table[0] = 7
assert Path("/proc/self/statm").read_text() and os.listdir("/proc/self/fd")
with open(f"/proc/self/fd/{os.memfd_create('key')}", "rb") as key:
    key.read()
time.sleep(0.01); time.monotonic(); os.urandom(8); gzip.compress(b"z" * 4096); os.pipe2(0)
signal.alarm(1); signal.alarm(0); print("good")
"""
    assert run(code) == "good\n"


@pytest.mark.parametrize(
    "step",
    [
        'open("/tmp/exitprint-never", "w")',
        'os.mkdir("/tmp/exitprint-never")',
        "socket.socket(socket.AF_INET)",
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "call(321, 5, 0, 0)",
        "call(321, 28, 0, 0)",
        "call(308, 0, 0)",
        "call(101, 0, 0, 0, 0)",
        "call(298, 0, 0, 0, 0, 0)",
    ],
)
def test_the_sensor_cannot(step: str) -> None:
    """Write files, speak IP, load or attach programs, enter namespaces, trace: nor can what it starts."""
    assert run(f"confinement.confine_sensor()\nprint(refused(lambda: {step}))") == "True\n"


def test_the_sensor_can_do_its_work() -> None:
    """Netlink, local sockets, reading files, and starting a program whose output it reads."""
    code = """
confinement.confine_sensor()
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
socket.socket(socket.AF_UNIX).close()
assert open("/etc/passwd").read()
told = subprocess.run(["sh", "-c", "echo x 2>/dev/null"], stdin=subprocess.DEVNULL, capture_output=True)
assert told.stdout == b"x\\n", told
print("good")
"""
    assert run(code) == "good\n"


def test_a_host_without_a_wall_is_told_and_has_the_other() -> None:
    """Nothing stops the service: a line says which wall is missing."""
    code = """
def gone(*_, **__): raise OSError(95, "Operation not supported")
confinement.restrict_files = gone
confinement.confine_aggregator()
print(refused(lambda: socket.socket()))
"""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "True\n"
    assert '"wall": "landlock"' in done.stderr
