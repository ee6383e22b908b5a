# SPDX-License-Identifier: Apache-2.0
"""Lets in who `web_config_file` lets in: TLS with client certificates, and passwords against bcrypt hashes.

Only a service that is configured so imports it: OpenSSL is 5 MB. Passwords are handled as Prometheus'
exporter toolkit does: a hash is computed for names that nobody has, too; one at a time, so that guessing
takes one core at most; what was right once is remembered, or each scrape would cost a tenth of a second.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import ssl
import threading
from collections.abc import Iterable

import bcrypt

from detector.config.tls import WebConfig
from detector.config.tls_context import context_of

_MOST_REMEMBERED = 64


class WebAccess:
    """Who may come in; never changed once it is made.

    Attributes:
        context: how connections are secured, None for not at all.

    Raises:
        OSError, ValueError: as `context_of`.
    """

    def __init__(self, config: WebConfig) -> None:
        self.context = context_of(config.tls) if config.tls else None
        self._names = frozenset(config.tls.allowed_names) if config.tls else frozenset()
        self._users = {name: made.encode() for name, made in config.users.items()}
        self._nobody = _hash_of_nobody(self._users.values()) if self._users else b""
        self._one_at_a_time = threading.Lock()
        self._secret = secrets.token_bytes(32)
        self._remembered: dict[bytes, None] = {}

    def knows(self, connection: ssl.SSLSocket) -> bool:
        """Whether the client's certificate, already verified, has one of the names that are let in."""
        if not self._names:
            return True
        names = (connection.getpeercert() or {}).get("subjectAltName", ())
        return any(isinstance(name, tuple) and name[1] in self._names for name in names)

    def authenticate(self, authorization: str | None) -> bool:
        """Whether an Authorization header, if one is asked for, has a user and the user's password."""
        if not self._users:
            return True
        name, password = _credentials(authorization)
        known = self._users.get(name)
        if known is None:
            self._matches(password, self._nobody)
            return False
        token = hmac.digest(self._secret, known + b"\0" + password, hashlib.sha256)
        # A look-up by a keyed digest: its time says nothing about a password.
        if token in self._remembered:
            return True
        if not self._matches(password, known):
            return False
        self._remember(token)
        return True

    def _matches(self, password: bytes, known: bytes) -> bool:
        with self._one_at_a_time:
            try:
                return bcrypt.checkpw(password, known)
            except ValueError:  # longer than bcrypt can tell apart, or with a zero byte
                return False

    def _remember(self, token: bytes) -> None:
        with self._one_at_a_time:
            while len(self._remembered) >= _MOST_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[token] = None


def _credentials(authorization: str | None) -> tuple[str, bytes]:
    """Name and password of a header; empty ones where it has none."""
    kind, _, encoded = (authorization or "").partition(" ")
    if kind.lower() != "basic":
        return "", b""
    try:
        name, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return name.decode(), password
    except (binascii.Error, ValueError):
        return "", b""


def _hash_of_nobody(hashes: Iterable[bytes]) -> bytes:
    """A hash that takes as long as the others do, of what nobody knows."""
    costs = [int(made[4:6]) for made in hashes]
    return bcrypt.hashpw(secrets.token_bytes(16).hex().encode(), bcrypt.gensalt(max(costs)))
