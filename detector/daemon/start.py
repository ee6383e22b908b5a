# SPDX-License-Identifier: Apache-2.0
"""`exitprint run` with root's rights: load the kernel program, start the others, become the sensor.

Nothing of this process's memory stays: the sensor is a new program under the same process number.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from detector import logs
from detector.base.errors import HostError, UsageError
from detector.base.interpreter import module_command
from detector.config.model import Config
from detector.config.tls import Mark, WebConfig
from detector.daemon import codec, legacy, privileges
from detector.daemon.messages import AggregatorSpec, SensorSpec, SocketAccess, for_aggregator
from detector.daemon.notify import Supervisor
from detector.kernel.loader import Loaded, load
from detector.logs import get_logger
from detector.publish.http.listening import listen
from detector.publish.inspect import socket as inspect
from detector.publish.inspect.access import access_of

_log = get_logger()

_CONNTRACK = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_FALLBACK_USER = "nobody"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NONE = -1  # no descriptor
_PATIENCE = 1.0  # seconds between two looks at what is waited for

# For glibc: give the memory of a cycle back when it is over (mallopt(3)); 14 MB less with 100,000 pairs.
FRUGAL = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

# The program stays out of the aggregator's reach: whoever has it can attach it once more.
_SENSOR_MAPS = (
    "peers", "networks4", "networks6", "watched", "pools", "evidences", "outcomes",
    "program", "link0", "link1",
)  # fmt: skip
# Arrays that it maps: it makes no call of bpf().
_AGGREGATOR_MAPS = (
    "pairs", "exits", "exit_lines", "exits_met", "slots", "evidences", "controls", "outcomes",
)  # fmt: skip


def run(config: Config, path: Path) -> NoReturn:
    """Run the service; the caller's process becomes its sensor.

    Args:
        config: what is in the file.
        path: the file, absolute, for reading it again.

    Raises:
        ExitprintError: it cannot be started here; nothing is left behind.
    """
    logs.configure("start", config.log_format, config.log_level)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the sensor listens to it; the others never do
    for number in SIGNALS:
        signal.signal(number, _stop)
    try:
        _run(config, path)
    except _Stopped:
        _log.info("stopping")
        raise SystemExit(0) from None


class _Stopped(BaseException):
    """A signal asked us to end before we had started."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise _Stopped


def _run(config: Config, path: Path) -> NoReturn:
    if os.geteuid() != 0:
        raise HostError("the service is to be started by root", "it gives that up as soon as it has started")
    user = _user(config.user)
    # Before the namespace is entered: whoever scrapes is where we were started.
    web, marks = _web(config)
    listener = listen(config.listen)
    access = access_of(config)
    inspector = inspect.listen(Path(config.inspect_socket), access) if config.inspect_socket else None
    _enter_namespace(config)
    waiting = AggregatorSpec(
        config=for_aggregator(config),
        maps={},
        channel=_NONE,
        listener=listener.fileno(),
        inspect=inspector.fileno() if inspector else None,
        access=SocketAccess(access.owner, access.group, access.mode),
        web=web,
        user=user,
        hook="",
    )
    _wait_for_conntrack(waiting)
    loaded = load(config.hook, config.tables, config.session_gap)
    for hook, reason in loaded.refused.items():
        _log.info("hook refused", hook=hook, reason=reason)
    _log.info("kernel program attached", hook=loaded.hook)
    ours, theirs = socket.socketpair()
    maps = _chosen(loaded, _AGGREGATOR_MAPS)
    spec = replace(waiting, maps=maps, channel=theirs.fileno(), hook=loaded.hook)
    aggregator = _start(spec, "detector.daemon.aggregator")
    try:
        _hand_over(config, path, loaded, ours, aggregator.pid, marks, (theirs, listener, inspector))
    except BaseException:
        aggregator.kill()
        aggregator.wait()
        raise


def _hand_over(
    config: Config,
    path: Path,
    loaded: Loaded,
    ours: socket.socket,
    aggregator: int,
    marks: Mapping[str, Mark],
    theirs: Iterable[socket.socket | None],
) -> NoReturn:
    """Close what is the aggregator's and become the sensor."""
    for end in theirs:
        if end:
            end.close()
    maps = _chosen(loaded, _SENSOR_MAPS)
    reader = _legacy_reader(config)
    asked = reader.fileno() if reader else None
    _become_sensor(loaded, SensorSpec(config, maps, ours.fileno(), aggregator, str(path), marks, asked))


def _legacy_reader(config: Config) -> socket.socket | None:
    """Where to ask for the rules of iptables-legacy; what cannot be read is told with the rules."""
    try:
        return legacy.start_reader(config)
    except OSError as error:
        _log.warning("nothing reads the rules of iptables-legacy", reason=error.strerror)
        return None


def _web(config: Config) -> tuple[WebConfig | None, dict[str, Mark]]:
    """What `web_config_file` says, with the marks of the files that were read; None where there is none."""
    if config.web_config_file is None:
        return None, {}
    from detector.config.web import load_web  # noqa: PLC0415  (OpenSSL, that only this case needs)

    return load_web(Path(config.web_config_file), guarded=config.to_be_guarded)


def _enter_namespace(config: Config) -> None:
    path = config.namespace_path
    if path is None:
        return
    try:
        privileges.enter_network(path)
    except OSError as error:
        reason = (error.strerror or "no such namespace").lower()
        raise UsageError(
            f"network_namespace: {config.network_namespace!r} cannot be entered: {reason}",
            "see the names with: ip netns list",
        ) from error


def _user(name: str) -> str:
    """The user to run the aggregator as: the one that is wanted, or nobody."""
    for candidate in (name, _FALLBACK_USER):
        try:
            entry = pwd.getpwnam(candidate)
        except KeyError:
            _log.warning(
                "no such user",
                user=candidate,
                instead=_FALLBACK_USER,
                risk=f"whatever else runs as {_FALLBACK_USER} can stop the aggregator",
                fix=f"useradd --system --no-create-home {candidate}",
            )
            continue
        if not entry.pw_uid:
            raise UsageError(f"user: {candidate} has root's rights", "name one that has none")
        return candidate
    raise HostError(f"there is no user {name}", f"make one with: useradd --system --no-create-home {name}")


def _wait_for_conntrack(spec: AggregatorSpec) -> None:
    """Wait until connection tracking is in the kernel: loading modules is not ours to do.

    Meanwhile another process says on the socket and the pages what is waited for.
    """
    if _CONNTRACK.exists():
        return
    _log.warning("waiting for conntrack", mend="modprobe nf_conntrack, or load a NAT rule")
    # For systemd the service is up: nobody is to wait for `systemctl start` until somebody loads a rule.
    supervisor = Supervisor(dict(os.environ), time.monotonic())
    with _start(spec, "detector.daemon.waiting") as answering:
        try:
            while not _CONNTRACK.exists():
                supervisor.heard(time.monotonic())
                supervisor.beat(time.monotonic())
                time.sleep(_PATIENCE)
        finally:
            answering.terminate()
    _log.info("conntrack is there")


def _spec(spec: SensorSpec | AggregatorSpec) -> int:
    """The descriptor of a file in memory that holds what the other process is to know."""
    descriptor = os.memfd_create("exitprint", 0)
    os.write(descriptor, codec.encode(spec))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _chosen(loaded: Loaded, names: tuple[str, ...]) -> dict[str, int]:
    return {name: loaded.descriptors[name] for name in names if name in loaded.descriptors}


def _start(spec: AggregatorSpec, module: str) -> subprocess.Popen[bytes]:
    """Start one of our modules with its part of what is open."""
    told = _spec(spec)
    passed = [told, spec.listener, *spec.maps.values()]
    passed += [one for one in (spec.channel, spec.inspect) if one is not None and one != _NONE]
    command = module_command(module, str(told))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child listens to them
    try:
        child = subprocess.Popen(command, pass_fds=passed, stdin=subprocess.DEVNULL, env=os.environ | FRUGAL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.close(told)
    return child


def _become_sensor(loaded: Loaded, spec: SensorSpec) -> NoReturn:
    told = _spec(spec)
    for descriptor in loaded.descriptors.values():  # they came over a socket: inheritable
        os.set_inheritable(descriptor, False)
    asked = () if spec.legacy is None else (spec.legacy,)
    for descriptor in (told, spec.channel, *asked, *spec.maps.values()):
        os.set_inheritable(descriptor, True)
    with contextlib.suppress(OSError):  # a full disk behind it is no reason not to start
        sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the sensor listens to them
    command = module_command("detector.daemon.sensor", str(told))
    os.execve(command[0], command, os.environ | FRUGAL)  # noqa: S606


__all__ = ["run"]
