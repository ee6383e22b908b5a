# SPDX-License-Identifier: Apache-2.0
"""Our processes find the same code again, wherever it is installed, and nothing else's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from detector import __version__
from detector.base import interpreter
from detector.base.interpreter import HOME, module_command

MAIN = Path(__file__).parents[3] / "deploy" / "private" / "__main__.py"


def test_where_python_searches_it_is_the_module() -> None:
    """In a clone or an environment, Python's own -m finds it."""
    command = module_command("detector", "--version")
    assert command == [sys.executable, "-I", "-m", "detector", "--version"]
    assert __version__ in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_private_folder_is_searched_first_and_alone(tmp_path: Path) -> None:
    """Code in a folder of its own starts itself from there, not what the environment or the folder names."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        (folder / "detector" / "base").mkdir(parents=True)
        (folder / "detector" / "__init__.py").touch()
        (folder / "detector" / "base" / "__init__.py").touch()
        (folder / "detector" / "which.py").write_text(f"import sys\nprint({folder.name!r}, sys.argv[1:])\n")
    (home / "detector/base/interpreter.py").write_bytes(Path(interpreter.__file__).read_bytes())
    starts = "import subprocess, sys; from detector.base.interpreter import module_command; "
    starts += "sys.exit(subprocess.run(module_command('detector.which', 'one')).returncode)"
    (home / "detector" / "starts.py").write_text(starts)
    (home / "__main__.py").write_bytes(MAIN.read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", str(home), "detector.starts"],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(elsewhere)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "home ['one']\n"


def test_home_is_what_the_package_is_in() -> None:
    """The folder above the package."""
    assert MAIN.parents[2] == HOME
