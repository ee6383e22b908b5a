# SPDX-License-Identifier: Apache-2.0
"""What a release consists of, the same bytes from the same commit: `python -m tools.dist`.

All of it is made in a clean copy of what git knows of this tree, with every time stamp that of the last
commit. The version is that of `detector.__version__`, and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from detector import __version__
from detector.base.errors import HostError

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"

_CHANGELOG = """\
exitprint ({version}) unstable; urgency=medium

  * {what}

 -- exitprint maintainers <maintainers@exitprint.invalid>  {date}
"""


def main(target: Path = DIST) -> list[Path]:
    """Make everything; returns the files.

    Raises:
        HostError: a tool is missing, or says that something is wrong.
    """
    target.mkdir(parents=True, exist_ok=True)
    epoch = _epoch()
    # Nothing of the machine or of whoever builds gets into a file.
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(epoch),
        "PYTHON": sys.executable,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with tempfile.TemporaryDirectory(prefix="exitprint-dist-") as work:
        tree = Path(work) / f"exitprint-{__version__}"
        copy_tree(tree, epoch)
        hatch = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist"]
        _run([*hatch, "-d", str(Path(work) / "python")], tree, environment)
        date = format_datetime(datetime.fromtimestamp(epoch, UTC))
        (tree / "debian" / "changelog").write_text(
            _CHANGELOG.format(version=__version__, date=date, what="See CHANGELOG.md.")
        )
        # -d: the interpreter of this environment has what is needed, whatever Debian's own has.
        _run(["dpkg-buildpackage", "--build=binary", "-us", "-uc", "-d"], tree, environment)
        made = [*Path(work).glob("*.deb"), *(Path(work) / "python").iterdir()]
        return sorted(Path(shutil.copy(file, target / file.name)) for file in made)


def copy_tree(target: Path, epoch: int) -> None:
    """What git has or would add of this tree, with the usual modes and one time stamp."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = [name.decode() for name in listed.stdout.split(b"\0") if name]
    for name in sorted(names):
        source, copy = ROOT / name, target / name
        if not source.is_file():  # removed, and not yet told to git
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
        copy.chmod(0o755 if os.access(source, os.X_OK) and source.stat().st_mode & 0o100 else 0o644)
    for folder, _, files in os.walk(target, topdown=False):
        for name in files:
            os.utime(Path(folder, name), (epoch, epoch))
        Path(folder).chmod(0o755)
        os.utime(folder, (epoch, epoch))


def _epoch() -> int:
    """When the last commit was made."""
    done = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise HostError("a release is made from a clone: git knows nothing of this tree", "clone it with git")
    return int(done.stdout)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            umask=0o022,
        )
    except FileNotFoundError:
        raise HostError(f"{command[0]} is not installed", "run: make dist") from None
    if done.returncode:
        raise HostError(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-4000:]}")


if __name__ == "__main__":
    for path in main(Path(sys.argv[1]) if len(sys.argv) > 1 else DIST):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{digest}  {path.name}  {path.stat().st_size:,} bytes")
