# SPDX-License-Identifier: Apache-2.0
"""Where the audit looks when no file is given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOOK = "from detector.nat.place import _running; print(_running())"


@pytest.mark.root
def test_a_namespace_that_was_entered_on_purpose_is_looked_at() -> None:
    """Whoever runs the audit inside of a namespace means that one, whatever services run beside it."""
    if os.geteuid():
        pytest.skip("a namespace needs root")
    command = ["unshare", "-n", sys.executable, "-c", LOOK]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout == '(None, "this network namespace, which is not the host\'s own")\n'
