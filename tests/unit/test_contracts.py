# SPDX-License-Identifier: Apache-2.0
"""The contracts of pyproject.toml: each holds, and an import that breaks it on purpose is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).parent / "lint-imports"

# Contract, the module that breaks it, what it imports.
BROKEN = [
    ("floors", "detector/counts/window.py", "detector.publish.metrics"),
    ("floors", "detector/base/flows.py", "detector.logs"),
    ("sensor", "detector/daemon/sensor.py", "numpy"),
    ("sensor", "detector/nat/mapping.py", "detector.analysis.report"),
    ("aggregator", "detector/publish/metrics.py", "detector.wireguard.model"),
    ("pure", "detector/analysis/report.py", "socket"),
    ("listing", "detector/conntrack/reader.py", "detector.publish.metrics"),
    ("base", "detector/base/flows.py", "numpy"),
]


def lint(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What import-linter says of the tree in a folder."""
    command = [str(LINT), "--no-cache", "--no-logo", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree that may be broken."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("detector", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_contracts_hold(tree: Path) -> None:
    """The tree as it is breaks none."""
    done = lint(tree)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(("contract", "where", "imported"), BROKEN)
def test_a_contract_that_is_broken_is_found(tree: Path, contract: str, where: str, imported: str) -> None:
    """One import too many, also one that another module brings along, breaks the contract."""
    file = tree / where
    whole = file.read_text()
    file.write_text(f"{whole}\nimport {imported}\n")
    try:
        done = lint(tree, "--contract", contract)
    finally:
        file.write_text(whole)
    assert done.returncode == 1, done.stdout
    assert "1 broken" in done.stdout
