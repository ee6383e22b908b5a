# SPDX-License-Identifier: Apache-2.0
"""A thing that stands is said once when it begins and once when it is over."""

from __future__ import annotations

import json
import subprocess
import sys

_STEPS = """
from detector import logs
from detector.base.errors import NotYet
from detector.daemon.warnings import Warnings
logs.configure("sensor", "json")
told = Warnings()
told.resolve("waiting")
for _ in range(3):
    told.warn_once("waiting", "waiting for WireGuard", NotYet("no interface"))
told.warn_once("waiting", "waiting for WireGuard", NotYet("wg0 not there"))
told.warn_once("slots", "no room", None, 7)
for _ in range(2):
    told.resolve("waiting")
"""


def test_what_stands_is_said_once() -> None:
    """The same trouble at every look is one line; another reason is another line; its end is one more."""
    done = subprocess.run([sys.executable, "-c", _STEPS], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["level"], line["event"], line.get("reason"), line.get("count")) for line in lines] == [
        ("warning", "waiting for WireGuard", "no interface", None),
        ("warning", "waiting for WireGuard", "wg0 not there", None),
        ("warning", "no room", None, 7),
        ("info", "over", None, None),
    ]
