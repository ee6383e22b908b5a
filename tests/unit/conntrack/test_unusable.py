# SPDX-License-Identifier: Apache-2.0
"""What cannot be used is named for what it is, with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from detector.cli import main

SAMPLES = {
    "a journal of systemd": b"LPKSHHRH" + bytes(200),
    "a packet capture": b"\xd4\xc3\xb2\xa1" + bytes(200),
    "an encrypted file": b"-----BEGIN PGP MESSAGE-----\n",
    "an SQLite database": b"SQLite format 3\0" + bytes(200),
    "a tar archive": bytes(257) + b"ustar" + bytes(300),
    "a set of rules": b"*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n",
    "what `wg show` prints": b"interface: wg0\n  public key: x\n",
    "a log of packets": b"kernel: IN=wg0 OUT=eth0 SRC=10.64.0.2 DST=198.51.100.1 LEN=60\n",
    "what `conntrack -S` prints": b"cpu=0   \tfound=0 invalid=0 insert=0 insert_failed=0 drop=0\n",
    "a number": b"4711\n",
    "a list of expectations": b"300 proto=6 src=10.64.0.2 dst=198.51.100.1 mask-src=255.255.255.255\n",
    "what tcpdump prints": b"20:26:40.506943 IP 10.64.0.2.4711 > 198.51.100.1.53: UDP\n",
    "an error message": b"conntrack v1.4.7 (conntrack-tools): Operation failed: you need to be root\n",
    "an empty listing": b"conntrack v1.4.7 (conntrack-tools): 0 flow entries have been shown.\n",
    "empty": b"",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_it_is_named(tmp_path: Path, name: str) -> None:
    """Exit status 2, what it is, and what to do, without its content."""
    path = tmp_path / "file"
    path.write_bytes(SAMPLES[name])
    done = CliRunner().invoke(main, ["analyze", str(path)])
    assert done.exit_code == 2, done.output
    said = " ".join(done.stderr.split())
    assert name in said
    assert "`" in said.split(name)[1] or "--" in said or "root" in said or "list on" in said
    assert "10.64.0.2" not in said
