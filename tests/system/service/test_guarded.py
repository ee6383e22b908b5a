# SPDX-License-Identifier: Apache-2.0
"""A whole service behind `web_config_file`: who serves cannot open the files, and still follows them."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detector.lab.relay import Lab
from detector.lab.service import LabService, launched
from tests.system.service.running import aggregator_of, until
from tests.unit.publish.http.certificates import PASSWORD, Papers, hashed, issue, papers

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
    pytest.mark.skipif(
        not (shutil.which("curl") and shutil.which("openssl")), reason="NO curl and openssl here"
    ),
]

FRESH = "the new one"
REFUSED = "web_config_file is not accepted"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One relay for all."""
    with Lab(peers=12) as relay:
        yield relay


@pytest.fixture
def made(tmp_path: Path) -> Papers:
    """Certificates in a folder that nobody but root may enter."""
    folder = tmp_path / "root-only"
    folder.mkdir(mode=0o700)
    return papers(folder)


def curl(service: LabService, made: Papers, path: str, password: str = PASSWORD) -> tuple[str, str]:
    """Status and body, with certificate and password; 000 where there is no answer."""
    url = service.metrics.replace("http://", "https://").replace("/metrics", path)
    command = [
        "curl", "-sS", "--max-time", "20", "-w", "\n%{http_code}", "--cacert", f"{made['ca.pem']}",
        "--cert", f"{made['client.pem']}", "--key", f"{made['client.key']}", "-u", f"scraper:{password}", url,
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    body, _, status = done.stdout.rpartition("\n")
    return status, body


def test_the_files_are_followed_by_a_process_that_may_open_them(lab: Lab, made: Papers) -> None:
    """Password and certificate change under a service that runs; a broken or unsafe file changes nothing."""
    with launched(lab, port=0, web_config_file=str(made.asking())) as service:
        until(lambda: curl(service, made, "/-/ready")[0] == "200", "the service is ready over TLS")
        assert curl(service, made, "/metrics", "wrong")[0] == "401"
        _reissue(made)
        made.asking(password=False, more=f"basic_auth_users: {{scraper: {hashed(FRESH)}}}\n")
        until(lambda: curl(service, made, "/metrics", FRESH)[0] == "200", "the new password is good")
        assert curl(service, made, "/metrics", PASSWORD)[0] == "401"
        made.web("tls_server_config: [")
        until(lambda: REFUSED in service.log.read_text(), "the broken file is in the log")
        assert curl(service, made, "/metrics", FRESH)[0] == "200"
        made.asking()
        made["server.key"].chmod(0o644)
        until(lambda: "everybody may read it" in service.log.read_text(), "the unsafe key is in the log")
        assert curl(service, made, "/metrics", FRESH)[0] == "200"
        made["server.key"].chmod(0o600)
        until(lambda: curl(service, made, "/metrics")[0] == "200", "what was mended is taken over")
        said = service.log.read_text()
        assert [one for one in (PASSWORD, FRESH, "PRIVATE KEY", "$2b$") if one in said] == []


def _reissue(made: Papers) -> None:
    issue(made, "server", "ca", "DNS:localhost,IP:127.0.0.1")


def test_the_process_that_serves_has_no_way_to_the_files(lab: Lab, made: Papers) -> None:
    """It runs as another user without a capability, and no descriptor of it leads to a file with a key."""
    with launched(lab, port=0, web_config_file=str(made.asking())) as service:
        until(lambda: curl(service, made, "/-/ready")[0] == "200", "the service is ready over TLS")
        opened = [str(one.readlink()) for one in Path(f"/proc/{aggregator_of(service)}/fd").iterdir()]
        assert [one for one in opened if str(made.folder) in one or "exitprint-key" in one] == []


def test_no_page_holds_a_key_a_tunnel_address_or_a_destination(lab: Lab, made: Papers) -> None:
    """After real traffic, everything that is served is searched for what was planted."""
    lab.apply("persistent")
    with launched(lab, port=0, web_config_file=str(made.asking())) as service:
        until(lambda: curl(service, made, "/-/ready")[0] == "200", "the service is ready over TLS")
        lab.send(lab.workload(288))
        until(lambda: "kernel_persistent" in curl(service, made, "/")[1], "flows are on the page")
        said = "".join(
            curl(service, made, path)[1] for path in ("/", "/metrics", "/-/healthy", "/-/ready", "/no")
        )
        keys = [base64.b64decode(peer.public_key).hex() for peer in lab.peers]
        assert [secret for secret in (*lab.secrets(), *keys) if secret in said] == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "ask for TLS and passwords with web_config_file, or set listen_beyond_loopback: true"),
        (
            {"web_config_file": "/nowhere/web.yml"},
            '"/nowhere/web.yml" cannot be read: no such file or directory',
        ),
    ],
)
def test_beyond_loopback_it_does_not_start_without(lab: Lab, keys: dict[str, Any], said: str) -> None:
    """Nothing is listened on, and the reason names what to write."""
    with launched(lab, port=0, listen="0.0.0.0:0", **keys) as service:
        assert service.process.wait(30) == 2
        assert said in service.log.read_text().replace("\n", " ")
