# SPDX-License-Identifier: Apache-2.0
"""Runs a tool whose output and time are bounded: what a firewall holds is not ours to trust."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 1 << 16
_MAX_ERRORS = 1 << 16


@dataclass(frozen=True, slots=True)
class Done:
    """A tool that has ended: its exit status (negative: the signal that killed it) and what it printed."""

    status: int
    stdout: str
    stderr: str


def run_bounded(
    command: Sequence[str],
    *,
    timeout: float,
    most: int,
    text: str | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run a tool to its end.

    Args:
        command: program and arguments.
        timeout: seconds that it may take.
        most: bytes that it may print; of its errors 64 KiB are kept.
        text: its standard input.
        folder: where it runs.
        environment: instead of ours.

    Raises:
        TimeoutError: it took longer, and was killed.
        OverflowError: it printed more, and was killed.
        OSError: it cannot be started.
    """
    end = time.monotonic() + timeout
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**(os.environ if environment is None else environment), "LC_ALL": "C.UTF-8"},
        process_group=0,
    )
    with process:
        try:
            out, errors = _talk(process, (text or "").encode(), end, most)
            process.wait(max(end - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            raise TimeoutError(command[0]) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
    return Done(process.returncode, out.decode(errors="replace"), errors.decode(errors="replace"))


def _talk(process: subprocess.Popen[bytes], given: bytes, end: float, most: int) -> tuple[bytes, bytes]:
    """Feed standard input and collect both outputs within the bounds."""
    out, errors = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for stream, held in ((process.stdout, out), (process.stderr, errors)):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, held)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        left = memoryview(given)
        while selector.get_map():
            wait = end - time.monotonic()
            if wait <= 0:
                raise TimeoutError
            for key, _ in selector.select(wait):
                if key.data is None:
                    left = _feed(selector, process, left)
                elif chunk := os.read(key.fd, _CHUNK):
                    key.data.extend(chunk if key.data is out else chunk[: _MAX_ERRORS - len(errors)])
                else:
                    selector.unregister(key.fileobj)
            if len(out) > most:
                raise OverflowError
    return bytes(out), bytes(errors)


def _feed(selector: selectors.BaseSelector, process: subprocess.Popen[bytes], left: memoryview) -> memoryview:
    """Write a piece of standard input, and close it after the last."""
    stream = process.stdin
    if stream is None:
        return left
    try:
        left = left[os.write(stream.fileno(), left[:_CHUNK]) if left else 0 :]
    except BrokenPipeError:
        left = left[len(left) :]
    except BlockingIOError:
        return left
    if not left:
        selector.unregister(stream)
        stream.close()
    return left
