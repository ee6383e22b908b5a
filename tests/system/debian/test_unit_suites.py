# SPDX-License-Identifier: Apache-2.0
"""The unit tests pass with the Python and the Python packages of each release of Debian, and no others."""

from __future__ import annotations

import os
import re

import pytest

from tests.system.debian.packages import dependencies
from tests.system.debian.roots import SUITES, fresh
from tools.dist import copy_tree

pytestmark = [
    pytest.mark.package,
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: cannot change the root file system"),
]

# What the tests themselves need beside the package's own dependencies.
_TOOLS = (
    "python3-pytest",
    "python3-hypothesis",
    "python3-pytest-timeout",
    "openssl",
    "curl",
    "nftables",
    "iptables",
    "conntrack",
    "iproute2",
    "procps",
    "kmod",
    "ethtool",
    "man-db",
    "netbase",
    "wireguard-go",
    "wireguard-tools",
    "ca-certificates",
)
# Of the tools that make the dashboards, check PromQL and import contracts, and drive a browser, Debian has no
# packages; none of them is on a relay.
_ELSEWHERE = (
    "tests/unit/dashboards",
    "tests/unit/tools/test_schemas.py",
    "tests/unit/deploy/test_prometheus.py",
    "tests/unit/publish/page/test_browser.py",
    "tests/unit/test_contracts.py",
    "tests/unit/test_docs.py",
)
_LEAST = 1000


@pytest.mark.parametrize("suite", SUITES)
def test_unit_tests_pass_with_debians_packages(suite: str) -> None:
    """Every unit test that is about what runs on a relay."""
    with fresh(suite, *dependencies(), *_TOOLS) as root:
        copy_tree(root.folder / "src", 1_700_000_000)
        root.write("/usr/lib/python3/dist-packages/exitprint.pth", "/src\n")
        without = " ".join(f"--ignore={path}" for path in _ELSEWHERE)
        command = f"cd /src && exec python3 -m pytest -q -p no:cacheprovider {without} tests/unit"
        done = root.run("sh", "-c", command, check=False, seconds=1800)
    print(f"\n{suite}: {done.stdout.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout[-8000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > _LEAST
