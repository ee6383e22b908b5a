# SPDX-License-Identifier: Apache-2.0
"""Reads `web_config_file`: TLS and users in the format of Prometheus' exporter toolkit.

The format is https://prometheus.io/docs/prometheus/latest/configuration/https/; what is not supported is
refused by name, and so is every file that others could read or change to their advantage. As a program of its
own it prints what it read for a process that holds neither the validator nor the YAML parser.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from detector.config.document import (
    MAX_FILE_BYTES,
    ConfigError,
    Problem,
    Where,
    because,
    expects,
    parse,
    problems,
)
from detector.config.tls import ClientAuth, Mark, Tls, Version, WebConfig, mark_of
from detector.config.tls_context import context_of

_HASH = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_MOST_ROUNDS = 15  # 2^15: a second or so for each password that is tried

# The names of Go's standard library, and OpenSSL's. TLS 1.3 has its own, which nobody chooses.
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


def _file_name(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError
    return value


def _cipher(value: str) -> str:
    if value not in _CIPHERS:
        raise ValueError
    return value


def _hash(value: str) -> str:
    match = _HASH.fullmatch(value)
    if match is None:
        raise ValueError
    if not 4 <= int(match[1]) <= _MOST_ROUNDS:
        raise because(f"its cost is not from 4 to {_MOST_ROUNDS}")
    return value


def _users(value: dict[str, str]) -> dict[str, str]:
    if any(not name or ":" in name for name in value):
        raise because("a user's name is not empty and holds no colon")
    return value


Cipher = Annotated[str, AfterValidator(_cipher)]
Hash = Annotated[str, AfterValidator(_hash)]
FileName = Annotated[str, AfterValidator(_file_name)]


class _Tls(BaseModel):
    """What may stand under `tls_server_config`; see `Tls`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    cert_file: FileName = expects("the name of a file with the certificate and its chain")
    key_file: FileName = expects("the name of a file with the certificate's key")
    client_auth_type: ClientAuth = expects(" or ".join(get_args(ClientAuth)))
    client_ca_file: FileName = expects("the name of a file with the certificates that clients' are signed by")
    client_allowed_sans: list[str] = expects("a list of names, addresses or URIs in clients' certificates")
    min_version: Version = expects("TLS12 or TLS13")
    max_version: Version = expects("TLS12 or TLS13")
    cipher_suites: list[Cipher] = expects(f"a list of {', '.join(_CIPHERS)}")
    prefer_server_cipher_suites: bool = expects("true or false")


class _Http(BaseModel):
    """What may stand under `http_server_config`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    http2: Literal[True, False] = expects("true or false; it is HTTP/1.1 in any case")


class _File(BaseModel):
    """What may stand in the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tls_server_config: _Tls | None = expects("a group of cert_file, key_file and others")
    http_server_config: _Http | None = expects("a group of http2")
    basic_auth_users: Annotated[dict[str, Hash], AfterValidator(_users)] | None = expects(
        "a bcrypt hash for each user, as `htpasswd -nBC 10 NAME` makes it"
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
            text, mark = _read(path, secret=secret)
        except _UnsafeError as unsafe:
            self.wrong.append(Problem(where, f"{json.dumps(name)} {unsafe}"))
            return ""
        self.marks[str(path)] = mark
        return text


class _UnsafeError(Exception):
    """Why a file is not read, to come after its name."""


def _read(path: Path, *, secret: bool) -> tuple[str, Mark]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such file"
        raise _UnsafeError(f"cannot be read: {reason.lower()}") from None
    try:
        found = os.fstat(descriptor)
        _check(found, secret=secret)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES:
        raise _UnsafeError(f"is not a file of at most {MAX_FILE_BYTES} bytes")
    try:
        return data.decode(), mark_of(found)
    except UnicodeDecodeError:
        raise _UnsafeError("is not UTF-8 text") from None


def _check(found: os.stat_result, *, secret: bool) -> None:
    """Raise where somebody else could change a file, or read one that is nobody else's business."""
    mode = f"its mode is {stat.S_IMODE(found.st_mode):04o}"
    if not stat.S_ISREG(found.st_mode):
        raise _UnsafeError("is not a regular file")
    if found.st_uid not in (0, os.geteuid()):
        raise _UnsafeError(f"is not root's: it belongs to user {found.st_uid}; expected chown root")
    if found.st_mode & 0o022:
        raise _UnsafeError(f"is not safe: others may change it ({mode}); expected chmod go-w")
    if secret and found.st_mode & 0o007:
        raise _UnsafeError(f"is not safe: everybody may read it ({mode}); expected chmod o-rwx")


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
        text, reading.marks[str(path)] = _read(path, secret=False)
    except _UnsafeError as unsafe:
        raise _error(path, [f"web_config_file: {json.dumps(str(path))} {unsafe}"]) from None
    document = parse(path, text)
    try:
        model = _File.model_validate(document.value)
    except ValidationError as error:
        wrong = problems(error, document, _File, secret={"basic_auth_users"})
        raise _error(path, map(document.line, wrong)) from None
    config = _config(model, reading)
    reading.wrong += _relations(model, config, reading.marks[str(path)], guarded=guarded)
    if reading.wrong:
        raise _error(path, map(document.line, reading.wrong))
    return config, reading.marks


def _error(path: Path, wrong: Any) -> ConfigError:
    error = ConfigError(path, wrong)
    error.hint = "mend it; a service that runs goes on with what it has"
    return error


def _config(model: _File, reading: _Reading) -> WebConfig:
    tls = model.tls_server_config
    return WebConfig(None if tls is None else _tls(tls, reading), model.basic_auth_users or {})


def _tls(model: _Tls, reading: _Reading) -> Tls | None:
    """The contents of the files, once those that have to be there are; tried out before anybody uses them."""
    given = model.model_fields_set
    missing = [key for key in ("cert_file", "key_file") if key not in given]
    reading.wrong += [Problem(_at(key), "is missing: expected the name of a file") for key in missing]
    if missing:
        return None
    made = Tls(
        certificate=reading.text(model.cert_file, _at("cert_file"), secret=False),
        key=reading.text(model.key_file, _at("key_file"), secret=True),
        client_auth=model.client_auth_type or "NoClientCert",
        client_ca=reading.text(model.client_ca_file, _at("client_ca_file"), secret=False)
        if "client_ca_file" in given
        else None,
        allowed_names=tuple(model.client_allowed_sans or ()),
        minimum=model.min_version or _VERSIONS[0],
        maximum=model.max_version or _VERSIONS[-1],
        ciphers=tuple(_CIPHERS[name] for name in model.cipher_suites or ()),
        prefer_server_ciphers=model.prefer_server_cipher_suites is not False,
    )
    if not reading.wrong:
        reading.wrong += _tried(made, model)
    return None if reading.wrong else made


def _at(key: str) -> Where:
    return ("tls_server_config", key)


def _tried(tls: Tls, model: _Tls) -> Iterator[Problem]:
    """What is wrong with the contents of the files."""
    for key, name, text in (
        ("cert_file", model.cert_file, tls.certificate),
        ("client_ca_file", model.client_ca_file, tls.client_ca),
    ):
        if text is not None and not _certificates(text):
            yield Problem(_at(key), f"{json.dumps(name)} is not a file of certificates in PEM")
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
