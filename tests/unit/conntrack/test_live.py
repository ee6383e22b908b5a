# SPDX-License-Identifier: Apache-2.0
"""`conntrack -E | exitprint analyze -` as a person uses it: until Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.unit.conntrack.listings import event, flows, text

LISTING = text([event(flow) for flow in flows(peers=30, each=8, persistent=True)])
PATIENCE = 60.0


def started(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """The command with a pipe for standard input."""
    return subprocess.Popen(
        [sys.executable, "-m", "detector", "analyze", "-", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


def reads(process: subprocess.Popen[bytes]) -> bool:
    """Whether it waits in a read of its pipe: all that was written has gone in."""
    try:
        waits = Path(f"/proc/{process.pid}/wchan").read_text() in {"pipe_read", "anon_pipe_read", "0", ""}
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        handled = int(
            next(
                line.split()[1]
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
                if line.startswith("SigCgt")
            ),
            16,
        )
    except OSError:
        return False
    return waits and state == "S" and bool(handled & 1 << signal.SIGINT - 1)


def test_ctrl_c_ends_the_reading_with_the_report() -> None:
    """The pipe stays open, as `conntrack -E` leaves it; what came until then is judged, status 0."""
    with started("--json") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(LISTING)
        process.stdin.flush()
        until = time.monotonic() + PATIENCE
        seen = 0
        while seen < 5 and time.monotonic() < until:  # more than a moment between two reads
            seen = seen + 1 if reads(process) else 0
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        report, said = process.stdout.read(), process.stderr.read()
        assert process.wait(PATIENCE) == 0, said
    judged = json.loads(report)
    assert judged["listing"]["flows"] == 240
    assert judged["predictor"] == "kernel_persistent"
    assert b"reading was ended" in said
    assert b"Traceback" not in said


def test_a_latin_1_terminal_gets_the_report() -> None:
    """A locale without a dash: the report, with a plain one."""
    with started(PYTHONIOENCODING="latin-1") as process:
        report, said = process.communicate(LISTING, timeout=PATIENCE)
    assert process.returncode == 0, said
    assert b"The relay is predictable" in report
    assert b"Traceback" not in said
