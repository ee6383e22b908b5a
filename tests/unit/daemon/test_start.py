# SPDX-License-Identifier: Apache-2.0
"""What the process that starts the service does not carry."""

from __future__ import annotations

import subprocess
import sys


def test_the_start_imports_nothing_that_only_the_aggregator_needs() -> None:
    """Neither columns nor metrics nor the compiler: it is over in a moment, also on a slow machine."""
    code = (
        "import sys, detector.config.file, detector.daemon.start; "
        "print([one for one in ('numpy', 'prometheus_client', 'pyroute2', 'bcc') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
