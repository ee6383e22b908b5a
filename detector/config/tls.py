# SPDX-License-Identifier: Apache-2.0
"""Who may read the pages, as every process holds it: certificates and users from `web_config_file`.

Whoever may open the files (`detector.config.web`) reads them; the serving process has their contents alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

ClientAuth = Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"]
Version = Literal["TLS12", "TLS13"]

# Changes when a file becomes another one: device, inode, size, mode, owner and time of change.
Mark = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """How connections are secured; texts are PEM.

    Attributes:
        client_ca: who signs the clients' certificates, None where none are asked for.
        allowed_names: names of which a client's certificate has to hold one; empty for any.
        ciphers: for TLS 1.2, by OpenSSL's names; empty for its default.
    """

    certificate: str
    key: str = field(repr=False)
    client_auth: ClientAuth = "NoClientCert"
    client_ca: str | None = None
    allowed_names: tuple[str, ...] = ()
    minimum: Version = "TLS12"
    maximum: Version = "TLS13"
    ciphers: tuple[str, ...] = ()
    prefer_server_ciphers: bool = True


@dataclass(frozen=True, slots=True)
class WebConfig:
    """Everything that the file says.

    Attributes:
        users: bcrypt hash by name; empty where no password is asked for.
    """

    tls: Tls | None = None
    users: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def guards(self) -> bool:
        """Whether strangers on the network can neither read along nor ask."""
        known = self.users or (self.tls and self.tls.client_auth == "RequireAndVerifyClientCert")
        return bool(self.tls and known)

    def as_message(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> WebConfig:
        """The inverse of `as_message`, also after JSON."""
        tls = told["tls"]
        if tls is not None:
            lists = {name: tuple(tls[name]) for name in ("allowed_names", "ciphers")}
            tls = Tls(**{**tls, **lists})
        return cls(tls, told["users"])


def mark_of(found: os.stat_result) -> Mark:
    """What a file is recognised by."""
    changes = (found.st_mtime_ns, found.st_ctime_ns)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mode, found.st_uid, *changes)


def marks_of(files: Mapping[str, Mark]) -> dict[str, Mark]:
    """The marks that these files have now; an empty one for a file that is not there."""
    return {name: _mark(Path(name)) for name in files}


def _mark(path: Path) -> Mark:
    try:
        return mark_of(path.stat())
    except OSError:
        return ()
