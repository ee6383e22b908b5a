# SPDX-License-Identifier: Apache-2.0
"""The hash and the exit choice against what running kernels did."""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from detector.predictors.kernel_hash import jhash, jhash2, kernel_exit, nft_jhash

VECTORS = Path(__file__).parents[2] / "vectors"
EXIT_CASES = json.loads((VECTORS / "kernel_exit_choice.json").read_text())["cases"]
JHASH_CASES = json.loads((VECTORS / "nft_jhash.json").read_text())["cases"]


@pytest.mark.parametrize("case", EXIT_CASES, ids=lambda case: str(case["rule"]))
def test_every_recorded_exit_is_reproduced(case: dict[str, Any]) -> None:
    """Each exit that a running kernel chose, IPv4 and IPv6, zones too, comes out of the formula."""
    for row in case["rows"]:
        chosen = kernel_exit(
            ip_address(row["source"]),
            ip_address(row["destination"]),
            ip_address(case["pool_first"]),
            ip_address(case["pool_last"]),
            zone=row["zone"],
            persistent="persistent" in case["rule"],
        )
        assert str(chosen) == row["exit"]


def test_no_destination_stands_for_persistent() -> None:
    """A rule with `persistent` chooses the same exit for each destination, and for none."""
    source, first, last = map(ip_address, ("10.1.2.3", "192.0.2.0", "192.0.2.255"))
    sites = [ip_address("198.51.100.1"), ip_address("198.51.100.2"), None]
    assert len({kernel_exit(source, site, first, last, persistent=True) for site in sites}) == 1
    assert kernel_exit(source, None, first, last) == kernel_exit(source, None, first, last, persistent=True)


def test_an_ipv6_pool_over_several_words_stays_inside() -> None:
    """A pool that spans more than the last word is filled word by word without leaving it."""
    first, last = ip_address("2001:db8::"), ip_address("2001:db8::ffff:ffff:ffff")
    exits = {kernel_exit(ip_address(f"fd00::{i:x}"), None, first, last) for i in range(200)}
    assert all(first <= address <= last for address in exits)  # type: ignore[operator]
    assert len({int(address) >> 32 for address in exits}) > 150


@pytest.mark.parametrize("case", JHASH_CASES, ids=lambda case: str(case["rule"]))
def test_nft_jhash_is_reproduced(case: dict[str, Any]) -> None:
    """Each mark that nft's jhash set in a running kernel comes out: concatenations and masks too."""
    fields = [bytes.fromhex(field) for field in case["fields"]]
    assert nft_jhash(fields, 1000000, case["seed"], case["offset"]) == case["result"]


def test_bytes_and_words_agree() -> None:
    """On whole words both forms of the hash are one function, whatever the number of words."""
    for count in range(9):
        words = [0x01020304 * (i + 1) & 0xFFFFFFFF for i in range(count)]
        data = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
        assert jhash(data, 99) == jhash2(words, 99)


def test_no_numpy_is_loaded() -> None:
    """The sensor can import the hash and the predictors without paying for NumPy."""
    code = "import sys, detector.predictors; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
