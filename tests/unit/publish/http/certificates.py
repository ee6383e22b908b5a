# SPDX-License-Identifier: Apache-2.0
"""An authority, a server and clients, as openssl makes them for a test."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import bcrypt

PASSWORD = "correct horse battery"  # noqa: S105


@dataclass(frozen=True)
class Papers:
    """Files of a test's own.

    Attributes:
        folder: where everything is, `web.yml` too.
    """

    folder: Path

    def __getitem__(self, name: str) -> Path:
        """A file: ca.pem, server.pem, server.key, client.pem, client.key, stranger.pem, stranger.key."""
        return self.folder / name

    def web(self, text: str) -> Path:
        """A `web.yml` with this text."""
        path = self["web.yml"]
        path.write_text(text)
        path.chmod(0o600)
        return path

    def asking(self, *, certificate: bool = True, password: bool = True, more: str = "") -> Path:
        """A `web.yml` with TLS that asks clients for something."""
        text = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"
        if certificate:
            text += "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"
        text += more
        return self.web(text + (f"basic_auth_users:\n  scraper: {hashed(PASSWORD)}\n" if password else ""))


def hashed(password: str) -> str:
    """A bcrypt hash that is quick to check."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def papers(folder: Path) -> Papers:
    """Everything a test needs: the stranger's certificate is by an authority that nobody trusts."""
    made = Papers(folder)
    _authority(made, "ca")
    _authority(made, "other")
    issue(made, "server", "ca", "DNS:localhost,IP:127.0.0.1")
    issue(made, "client", "ca", "DNS:prometheus.example.net")
    issue(made, "stranger", "other", "DNS:prometheus.example.net")
    return made


def _authority(made: Papers, name: str) -> None:
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", f"/CN={name}", "-keyout", made[f"{name}.key"], "-out", made[f"{name}.pem"],
    )  # fmt: skip


def issue(made: Papers, name: str, authority: str, names: str) -> None:
    """A key and a certificate for these names."""
    request, extra = made[f"{name}.csr"], made[f"{name}.ext"]
    extra.write_text(f"subjectAltName={names}\n")
    _openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
        "-keyout", made[f"{name}.key"], "-out", request,
    )  # fmt: skip
    _openssl(
        "x509", "-req", "-in", request, "-CA", made[f"{authority}.pem"], "-CAkey", made[f"{authority}.key"],
        "-CAcreateserial", "-days", "2", "-extfile", extra, "-out", made[f"{name}.pem"],
    )  # fmt: skip


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
