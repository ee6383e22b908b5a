# SPDX-License-Identifier: Apache-2.0
"""Reads files that a process of root's acts on: none that somebody else could have written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from detector.config.tls import Mark, mark_of

MAX_FILE_BYTES = 1 << 20


class UnsafeError(Exception):
    """Why a file is not read, to come after its name."""


def read_guarded(path: Path, *, secret: bool = False) -> tuple[str, Mark]:
    """A file's text, and what the file is recognised by.

    Args:
        path: its name.
        secret: it holds what nobody else may read.

    Raises:
        UnsafeError: it cannot be read, is not safe, or is no text.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such file"
        raise UnsafeError(f"cannot be read: {reason.lower()}") from None
    try:
        found = os.fstat(descriptor)
        _check(found, secret=secret)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES:
        raise UnsafeError(f"is not a file of at most {MAX_FILE_BYTES} bytes")
    try:
        return data.decode(), mark_of(found)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnsafeError(f"is not UTF-8 text: byte {error.start}, in line {line}") from None


def _check(found: os.stat_result, *, secret: bool) -> None:
    """Raise where somebody else could change a file, or read one that is nobody else's business."""
    mode = f"its mode is {stat.S_IMODE(found.st_mode):04o}"
    if not stat.S_ISREG(found.st_mode):
        raise UnsafeError("is not a regular file")
    if found.st_uid not in (0, os.geteuid()):
        raise UnsafeError(f"is not root's: it belongs to user {found.st_uid}; expected chown root")
    if found.st_mode & 0o022:
        raise UnsafeError(f"is not safe: others may change it ({mode}); expected chmod go-w")
    if secret and found.st_mode & 0o007:
        raise UnsafeError(f"is not safe: everybody may read it ({mode}); expected chmod o-rwx")
