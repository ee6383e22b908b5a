# SPDX-License-Identifier: Apache-2.0
"""Lets in who `web_config_file` lets in: TLS with client certificates, and passwords against bcrypt hashes.

Only a service that is configured so imports it: OpenSSL is 5 MB. As with Prometheus' exporter toolkit, a hash
is computed for names that nobody has, too, and what was right once is remembered, or each scrape would cost a
tenth of a second. Unlike there, every name costs the same: time does not tell which names there are.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import ssl

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
        costs = [_cost(made) for made in self._users.values()]
        self._highest = max(costs, default=0)
        self._fillers = {
            cost: _hash_of_nobody(cost) for cost in range(min(costs, default=0), self._highest + 1)
        }
        self._nobody = self._fillers[self._highest] if costs else b""
        self._secret = secrets.token_bytes(32)
        self._remembered: dict[bytes, None] = {}

    def knows(self, connection: ssl.SSLSocket) -> bool:
        """Whether the client's certificate, already verified, has one of the names that are let in."""
        if not self._names:
            return True
        names = (connection.getpeercert() or {}).get("subjectAltName", ())
        return any(isinstance(name, tuple) and name[1] in self._names for name in names)

    def glance(self, authorization: str | None) -> bool | None:
        """What can be told at once of an Authorization header: nothing is asked for, it is known, it is none.

        Returns:
            None where `authenticate` has to compute it.
        """
        if not self._users:
            return True
        credentials = _credentials(authorization)
        if credentials is None:
            return False
        # A look-up by a keyed digest: its time says nothing about a password.
        return True if self._token(*credentials) in self._remembered else None

    def authenticate(self, authorization: str | None) -> bool:
        """Whether an Authorization header has a user and the user's password; takes as long for any name."""
        credentials = _credentials(authorization)
        if credentials is None:
            return False
        name, password = credentials
        known = self._users.get(name, self._nobody)
        good = self._matches(password, known)
        # 2^c at cost c and 2^c more for each cost from c to below the highest one come to 2^highest.
        for cost in range(_cost(known), self._highest):
            self._matches(password, self._fillers[cost])
        if good and name in self._users:
            self._remember(self._token(name, password))
            return True
        return False

    def _token(self, name: str, password: bytes) -> bytes:
        known = self._users.get(name, self._nobody)
        return hmac.digest(self._secret, known + b"\0" + password, hashlib.sha256)

    def _matches(self, password: bytes, known: bytes) -> bool:
        try:
            return bcrypt.checkpw(password, known)
        except ValueError:  # longer than bcrypt can tell apart, or with a zero byte
            return False

    def _remember(self, token: bytes) -> None:
        while len(self._remembered) >= _MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[token] = None


def _credentials(authorization: str | None) -> tuple[str, bytes] | None:
    """Name and password of a header, None where it has none."""
    kind, _, encoded = (authorization or "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (name.decode(), password) if colon else None
    except (binascii.Error, ValueError):
        return None


def _cost(made: bytes) -> int:
    """The cost of a hash: it takes 2^cost rounds."""
    return int(made[4:6])


def _hash_of_nobody(cost: int) -> bytes:
    """A hash of what nobody knows."""
    return bcrypt.hashpw(secrets.token_bytes(16).hex().encode(), bcrypt.gensalt(max(cost, 4)))
