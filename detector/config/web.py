# SPDX-License-Identifier: Apache-2.0
"""Reads `web_config_file`: TLS and users in the format of Prometheus' exporter toolkit.

The format is https://prometheus.io/docs/prometheus/latest/configuration/https/; what is not supported is
refused by name, and so is every file that others could read or change to their advantage. As a program of its
own it prints what it read for a process that does not hold the YAML parser.
"""

from __future__ import annotations

import json
import re
import ssl
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_args

from detector.config.document import ConfigError, parse
from detector.config.guarded import UnsafeError, read_guarded
from detector.config.keys import Group, key, read_keys
from detector.config.kinds import (
    Choice,
    Flag,
    Matching,
    Named,
    Nullable,
    Plain,
    Problem,
    Reading,
    Refused,
    Several,
    Where,
)
from detector.config.tls import ClientAuth, Mark, Tls, Version, WebConfig
from detector.config.tls_context import context_of

_EXAMPLE = "basic_auth_users: {prometheus: <hash>}"
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_MOST_ROUNDS = 15  # 2^15: a second or so for each password that is tried
_MOST_USERS = 1000

# The names of Go's standard library, and OpenSSL's.
_CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
_VERSIONS = get_args(Version)


# --- what a value may be ---------------------------------------------------------------------------


def _unsupported(instead: str) -> str:
    return f"is a key of Prometheus' exporter toolkit that is not supported here: {instead}"


@dataclass(frozen=True, slots=True)
class _Cipher(Choice):
    """A cipher suite of TLS 1.2, by Go's name."""

    def take(self, value: object) -> str:
        if value in self.options:
            return str(value)
        # RFC 8446, B.4: those of TLS 1.3 name no key exchange.
        if isinstance(value, str) and re.fullmatch(r"TLS_(AES|CHACHA20)_\w+", value):
            raise Refused("suites of TLS 1.3 cannot be chosen, all of them are in use: leave it out")
        raise Refused


@dataclass(frozen=True, slots=True)
class _Known(Choice):
    """A word of which the toolkit knows more than are supported here.

    Attributes:
        foreign: those, and why they are not.
    """

    foreign: Mapping[str, str] = field(default_factory=dict)

    def take(self, value: object) -> str:
        if isinstance(value, str) and value in self.foreign:
            raise Refused(f"the exporter toolkit has it, and it is not supported here: {self.foreign[value]}")
        return Choice.take(self, value)


@dataclass(frozen=True, slots=True)
class _Hash(Plain):
    """A bcrypt hash, which is never shown."""

    def take(self, value: object) -> str:
        match = _BCRYPT.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise Refused
        if not 4 <= int(match[1]) <= _MOST_ROUNDS:
            raise Refused(f"its cost is not from 4 to {_MOST_ROUNDS}")
        return match[0]


def _file(of: str) -> Matching:
    return Matching(f"the name of a file with {of}", r"[^\0]+")


_VERSION = _Known(
    " or ".join(_VERSIONS), _VERSIONS, foreign=dict.fromkeys(("TLS10", "TLS11"), "RFC 8996 forbids it")
)


@dataclass(frozen=True, slots=True)
class _TlsServerConfig:
    """What may stand under `tls_server_config`; see `Tls`."""

    FOREIGN: ClassVar[Mapping[str, str]] = {
        "cert": _unsupported("put the certificate in a file, and name that with cert_file"),
        "key": _unsupported("put the key in a file, and name that with key_file"),
        "client_ca": _unsupported("put the certificates in a file, and name that with client_ca_file"),
        "curve_preferences": _unsupported("leave it out, OpenSSL's own are in use"),
    }

    cert_file: str | None = key(None, _file("the certificate and its chain"), "")
    key_file: str | None = key(None, _file("the certificate's key"), "")
    client_auth_type: ClientAuth = key(
        "NoClientCert",
        _Known(
            " or ".join(get_args(ClientAuth)),
            get_args(ClientAuth),
            foreign=dict.fromkeys(
                ("RequestClientCert", "RequireAnyClientCert"),
                "a certificate that nobody verifies says nothing",
            ),
        ),
        "",
    )
    client_ca_file: str | None = key(None, _file("the certificates that clients' are signed by"), "")
    client_allowed_sans: tuple[str, ...] = key(
        (),
        Several(
            "a list of names, addresses or URIs in clients' certificates",
            Matching("a name, an address or a URI in clients' certificates"),
        ),
        "",
    )
    min_version: Version = key(_VERSIONS[0], _VERSION, "")
    max_version: Version = key(_VERSIONS[-1], _VERSION, "")
    cipher_suites: tuple[str, ...] = key(
        (), Several(f"a list of {', '.join(_CIPHERS)}", _Cipher.of(*_CIPHERS)), ""
    )
    prefer_server_cipher_suites: bool = key(True, Flag(), "")


@dataclass(frozen=True, slots=True)
class _HttpServerConfig:
    """What may stand under `http_server_config`."""

    FOREIGN: ClassVar[Mapping[str, str]] = {
        "headers": _unsupported("leave it out, every answer has the headers that protect it"),
    }

    http2: bool = key(True, Flag("true or false; it is HTTP/1.1 in any case"), "")


@dataclass(frozen=True, slots=True)
class _File:
    """What may stand in the file."""

    FOREIGN: ClassVar[Mapping[str, str]] = {
        "rate_limit": _unsupported("leave it out, connections and requests have limits of their own"),
    }

    tls_server_config: _TlsServerConfig | None = key(None, Nullable.of(Group.of(_TlsServerConfig)), "")
    http_server_config: _HttpServerConfig | None = key(None, Nullable.of(Group.of(_HttpServerConfig)), "")
    basic_auth_users: Mapping[str, str] | None = key(
        None,
        Nullable.of(
            Named(
                "a bcrypt hash for each user, as `htpasswd -nBC 10 NAME` makes it",
                _Hash("a bcrypt hash, as `htpasswd -nBC 10 NAME` makes it", secret=True),
                Matching("a user's name, which is not empty and holds no colon", r"[^:\0]+"),
                _MOST_USERS,
                secret=True,
            )
        ),
        "",
    )


# --- the file --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Reading:
    """The files that are read for one `web_config_file`.

    Attributes:
        path: of the file itself; names in it are relative to its folder.
        marks: of everything that was read.
        wrong: what is to be mended.
    """

    path: Path
    marks: dict[str, Mark] = field(default_factory=dict)
    wrong: list[Problem] = field(default_factory=list)

    def text(self, name: str, where: Where, *, secret: bool) -> str:
        """A file's text; if it cannot be had, an empty one and a line in `wrong`."""
        path = self.path.parent / name
        try:
            text, mark = read_guarded(path, secret=secret)
        except UnsafeError as unsafe:
            self.wrong.append(Problem(where, f"{json.dumps(name)} {unsafe}"))
            return ""
        self.marks[str(path)] = mark
        return text


def load_web(path: Path, *, guarded: bool) -> tuple[WebConfig, dict[str, Mark]]:
    """What a `web_config_file` says, and the marks of the files that were read.

    Args:
        path: the file.
        guarded: strangers can reach the pages, so TLS and credentials have to be asked for.

    Raises:
        ConfigError: it cannot be read, is not safe, or something in it is wrong.
    """
    reading = _Reading(path)
    try:
        text, reading.marks[str(path)] = read_guarded(path, secret=False)
    except UnsafeError as unsafe:
        raise _error(path, [f"web_config_file: {json.dumps(str(path))} {unsafe}"]) from None
    try:
        document = parse(path, text, _EXAMPLE)
    except ConfigError as error:
        raise _error(path, error.problems) from None
    wrong = Reading()
    model = read_keys(_File, document.value, (), wrong)
    if model is None:
        raise _error(path, document.error(wrong.problems).problems)
    config = _config(model, reading)
    reading.wrong += _relations(model, config, reading.marks[str(path)], guarded=guarded)
    if reading.wrong:
        raise _error(path, document.error(reading.wrong).problems)
    return config, reading.marks


def _error(path: Path, wrong: Iterable[str]) -> ConfigError:
    error = ConfigError(path, wrong)
    error.hint = "mend it; a service that runs goes on with what it has"
    return error


def _config(model: _File, reading: _Reading) -> WebConfig:
    tls = model.tls_server_config
    return WebConfig(None if tls is None else _tls(tls, reading), model.basic_auth_users or {})


def _tls(model: _TlsServerConfig, reading: _Reading) -> Tls | None:
    """The contents of the files, once those that have to be there are; tried out before anybody uses them."""
    if model.cert_file is None or model.key_file is None:
        missing = [key for key in ("cert_file", "key_file") if getattr(model, key) is None]
        reading.wrong += [Problem(_at(key), "is missing: expected the name of a file") for key in missing]
        return None
    made = Tls(
        certificate=reading.text(model.cert_file, _at("cert_file"), secret=False),
        key=reading.text(model.key_file, _at("key_file"), secret=True),
        client_auth=model.client_auth_type,
        client_ca=None
        if model.client_ca_file is None
        else reading.text(model.client_ca_file, _at("client_ca_file"), secret=False),
        allowed_names=model.client_allowed_sans,
        minimum=model.min_version,
        maximum=model.max_version,
        ciphers=tuple(_CIPHERS[name] for name in model.cipher_suites),
        prefer_server_ciphers=model.prefer_server_cipher_suites,
    )
    if not reading.wrong:
        reading.wrong += _tried(made, model)
    return None if reading.wrong else made


def _at(key: str) -> Where:
    return ("tls_server_config", key)


def _tried(tls: Tls, model: _TlsServerConfig) -> Iterator[Problem]:
    """What is wrong with the contents of the files."""
    for at, name, text in (
        ("cert_file", model.cert_file, tls.certificate),
        ("client_ca_file", model.client_ca_file, tls.client_ca),
    ):
        if text is not None and not _certificates(text):
            yield Problem(_at(at), f"{json.dumps(name)} is not a file of certificates in PEM")
            return
    try:
        context_of(tls)
    except (ssl.SSLError, OSError, ValueError) as error:
        name = json.dumps(model.key_file)
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            yield Problem(_at("key_file"), f"{name} is not the key of the certificate in cert_file")
        else:
            yield Problem(_at("key_file"), f"{name} is not a private key in PEM without a password")


def _certificates(text: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        return False
    return True


def _relations(model: _File, config: WebConfig, mark: Mark, *, guarded: bool) -> Iterator[Problem]:
    tls = config.tls
    if tls is not None:
        yield from _tls_relations(tls)
    mode = mark[3]
    if config.users and mode & 0o007:
        yield Problem(
            ("basic_auth_users",),
            f"the file with the hashes is not safe: everybody may read it (its mode is "
            f"{stat.S_IMODE(mode):04o}); expected chmod o-rwx",
        )
    if guarded and not config.guards and not (model.tls_server_config and tls is None):
        yield Problem(
            ("tls_server_config",),
            "with listen beyond loopback, TLS is expected, and basic_auth_users or client_auth_type: "
            "RequireAndVerifyClientCert; or set listen_beyond_loopback: true in the configuration",
        )


def _tls_relations(tls: Tls) -> Iterator[Problem]:
    asks = tls.client_auth != "NoClientCert"
    if asks and tls.client_ca is None:
        yield Problem(_at("client_auth_type"), f"{tls.client_auth} needs client_ca_file, which is missing")
    if tls.client_ca is not None and not asks:
        yield Problem(
            _at("client_ca_file"), "does nothing without client_auth_type: RequireAndVerifyClientCert"
        )
    if tls.allowed_names and tls.client_auth != "RequireAndVerifyClientCert":
        yield Problem(
            _at("client_allowed_sans"), "does nothing without client_auth_type: RequireAndVerifyClientCert"
        )
    if tls.minimum > tls.maximum:
        yield Problem(_at("min_version"), f"{tls.minimum} is above max_version ({tls.maximum})")


def main(path: str, guarded: str) -> int:
    """Print what the file says as JSON, or what is wrong on standard error; returns the exit status."""
    try:
        config, marks = load_web(Path(path), guarded=guarded == "guarded")
    except ConfigError as error:
        sys.stderr.write(f"{error.what}\n")
        return error.status
    told: Mapping[str, Any] = {"config": config.as_message(), "marks": marks}
    sys.stdout.write(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
