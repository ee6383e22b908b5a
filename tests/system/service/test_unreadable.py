# SPDX-License-Identifier: Apache-2.0
"""The service from a folder that only root can read, as a clone below /root is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

ROOT = Path(__file__).parents[3]
# In a mount namespace of its own: the folder, with all that is in it, for root alone.
HIDE = """
set -e
mount -t tmpfs none "$2"
mkdir "$2/upper" "$2/work"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" none "$1"
chmod 0700 "$1"
cd "$1"
shift 2
! setpriv --reuid 65534 --clear-groups --bounding-set=-all -- ls . >/dev/null 2>&1
exec "$@"
"""


def hidden(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the project readable by root alone."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", HIDE, "sh", str(ROOT), str(folder), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    if "overlay" in done.stderr and done.returncode:
        pytest.skip(f"NO OVERLAY MOUNT: {done.stderr.strip()}")
    return done


def test_the_lab_answers_from_a_folder_of_roots(tmp_path: Path) -> None:
    """The aggregator, another user, needs nothing of the code after it gave up root's rights."""
    command = [sys.executable, "-I", "-m", "detector", "lab", "--json", "--peers", "6", "--flows", "288"]
    done = hidden(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["verdict"], report["coverage"]) == ("predictable", 1.0)
    assert sum(family["flows"] for family in report["families"].values()) == 288


def test_an_aggregator_that_cannot_start_says_why(tmp_path: Path) -> None:
    """What it stumbled over reaches the person who started the lab, not only that it has ended."""
    broken = "sed -i 's/    privileges.drop_privileges(.*/    import nowhere/' detector/daemon/aggregator.py"
    lab = f"{sys.executable} -I -m detector lab --json --peers 2 --flows 16"
    done = hidden(tmp_path, "sh", "-c", f"{broken} && exec {lab}")
    assert done.returncode == 3
    assert "aggregator: unexpected error (ModuleNotFoundError at aggregator.py" in done.stderr
    assert "the aggregator has ended" in done.stderr
