# SPDX-License-Identifier: Apache-2.0
"""Finds the network namespace whose rules count: the one that the service looks at, not the shell's."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from detector.base.errors import UsageError
from detector.nat.live import read_live
from detector.nat.model import RuleSet

SENSOR = b"detector.daemon.sensor"
"""The process that reads the rules in the service, by its command line."""

_CLONE_NEWNET = 0x40000000
_PROC = Path("/proc")


def read_where_the_service_looks(config: Path | None) -> tuple[RuleSet, str]:
    """The rules that the service goes by, and where they are, for people.

    Args:
        config: the service's configuration, or None to look for the service that runs here.

    Raises:
        ExitprintError: the configuration, the namespace or the rules cannot be read.
    """
    namespace, where = _configured(config) if config is not None else _running()
    if namespace is not None:
        _enter(namespace, where)
    return read_live(), where


def _configured(config: Path) -> tuple[Path | None, str]:
    """The namespace that a configuration names; without one, that of the service, else ours."""
    from detector.config.file import load_config  # noqa: PLC0415  (YAML, that only this case needs)

    path = load_config(config).namespace_path
    if path is not None:
        return path, f"network namespace {path.name} (by {config})"
    return _running()


def _running() -> tuple[Path | None, str]:
    """The namespace of the one service that runs here; ours where none does, or where we are on purpose."""
    own = _identity(_PROC / "self/ns/net")
    if own != _host():
        return None, "this network namespace, which is not the host's own"
    found = dict.fromkeys(_namespaces_of_sensors())
    for path, identity in found:
        if identity == own:
            return None, f"this network namespace, where the service looks too (process {path.parts[2]})"
    if len({identity for _, identity in found}) > 1:
        raise UsageError(
            "several services run here, in network namespaces of their own",
            "say whose rules are meant: exitprint audit --config FILE",
        )
    for path, _ in found:
        return path, f"the network namespace of the running service (process {path.parts[2]})"
    return None, "this network namespace (no service runs here)"


def _namespaces_of_sensors() -> Iterator[tuple[Path, int]]:
    """The namespaces of the sensors that we may look at: path and identity."""
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if SENSOR in words and words[0].rpartition(b"/")[2].startswith(b"python"):
                yield folder / "ns/net", _identity(folder / "ns/net")
        except OSError:
            continue


def _host() -> int:
    """The network namespace of the first process above us, or of the farthest that we may look at."""
    found, pid = _identity(_PROC / "self/ns/net"), os.getppid()
    while pid > 0:
        try:
            found = _identity(_PROC / str(pid) / "ns/net")
            pid = int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            break
    return found


def _identity(path: Path) -> int:
    return path.stat().st_ino


def _enter(namespace: Path, where: str) -> None:
    """Move this process into a network namespace, for good."""
    try:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{where} cannot be opened: {error.strerror}", "see ip netns list") from error
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise UsageError(f"{where} cannot be entered: {reason}", "run it as root")
    finally:
        os.close(descriptor)
