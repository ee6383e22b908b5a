# SPDX-License-Identifier: Apache-2.0
"""What a run is told, and what is said of a file that is wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from detector.base.errors import UsageError
from detector.base.family import Family
from detector.canary.plan import read_plan
from detector.canary.reflect import reflect

RELAY = {"name": "r1", "endpoint": "192.0.2.1:51820", "public_key": "k", "pools": ["203.0.113.0-203.0.113.7"]}
CANARY = {"name": "c1", "private_key_file": "/etc/c1.key", "addresses": ["10.127.255.1", "fc00::1"]}
GOOD = {"reflector": ["198.51.100.1", "198.51.100.2"], "relays": [RELAY], "canaries": [CANARY]}


def read(tmp_path: Path, value: Any) -> Any:
    """The plan that this value is read as."""
    path = tmp_path / "plan.yml"
    path.write_text(yaml.safe_dump(value))
    return read_plan(path)


def test_a_plan_is_read(tmp_path: Path) -> None:
    """Each key arrives, and what is left out has a polite default."""
    plan = read(tmp_path, GOOD)
    assert [str(one) for one in plan.reflector[Family.IPV4]] == GOOD["reflector"]
    assert (plan.port, plan.requests, plan.pause, plan.timeout) == (8080, 2, 1.0, 5.0)
    assert plan.relays[0].pools[Family.IPV4].size == 8
    assert str(plan.canaries[0].addresses[Family.IPV6]) == "fc00::1"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"reflektor": []}, "reflektor: expected one of"),
        ({"reflector": []}, "reflector: expected a list of addresses"),
        ({"reflector": ["example.net"]}, "reflector: expected a list of IPv4 and IPv6 addresses"),
        ({"relays": []}, "relays: expected a list with at least one entry"),
        ({"relays": [{**RELAY, "pools": ["x"]}]}, "relays[0].pools: expected addresses"),
        ({"relays": [{**RELAY, "pools": []}]}, "relays[0].pools: expected a range"),
        ({"relays": [{**RELAY, "endpoint": 1}]}, "relays[0].endpoint: expected a text"),
        ({"canaries": [{**CANARY, "name": "C 1"}]}, "canaries[0].name: expected 1 to 32"),
        ({"canaries": ["c1"]}, "canaries[0]: expected a group of"),
        ({"pause": 2}, "pause: expected a text"),
        ({"pause": "2"}, "pause: expected a duration"),
        ({"requests": 21}, "requests: expected a number from 1 to 20"),
    ],
)
def test_a_wrong_plan_names_the_key(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    """The key and what is expected are in the message."""
    with pytest.raises(UsageError) as caught:
        read(tmp_path, GOOD | change)
    assert expected in str(caught.value)


def test_no_file_and_no_yaml(tmp_path: Path) -> None:
    """Both are a user's error that names the file."""
    with pytest.raises(UsageError, match="cannot be read"):
        read_plan(tmp_path / "none")
    (tmp_path / "bad").write_text("a: [")
    with pytest.raises(UsageError, match="not YAML"):
        read_plan(tmp_path / "bad")


def test_the_reflector_tells_the_address(unused_port: int = 18_099) -> None:
    """Whoever asks gets its own address; whoever says nothing that is a question gets nothing."""

    async def asked(request: bytes) -> bytes:
        server = asyncio.create_task(reflect(["127.0.0.1"], unused_port))
        await asyncio.sleep(0.2)
        reader, writer = await asyncio.open_connection("127.0.0.1", unused_port)
        writer.write(request)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        server.cancel()
        return answer

    answer = asyncio.run(asked(b"GET / HTTP/1.0\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n127.0.0.1\n")
    assert asyncio.run(asked(b"GET / HTTP/1.0\r\n")) == b""
