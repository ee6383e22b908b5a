# SPDX-License-Identifier: Apache-2.0
"""How connections are secured as `web_config_file` says. OpenSSL is 5 MB: only who needs it imports this."""

from __future__ import annotations

import os
import ssl

from detector.config.tls import Tls

_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENTS = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


def context_of(tls: Tls) -> ssl.SSLContext:
    """What connections are secured with.

    Raises:
        OSError, ValueError: key and certificates are not what they should be (`ssl.SSLError` is an OSError).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = _VERSIONS[tls.minimum], _VERSIONS[tls.maximum]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if not tls.prefer_server_ciphers:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if tls.ciphers:
        context.set_ciphers(":".join(tls.ciphers))
    context.set_alpn_protocols(["http/1.1"])
    context.verify_mode = _CLIENTS[tls.client_auth]
    if tls.client_ca is not None:
        context.load_verify_locations(cadata=tls.client_ca)
    _load_key(context, tls)
    return context


def _load_key(context: ssl.SSLContext, tls: Tls) -> None:
    """The library takes names of files only: ours are in memory, without a name that others could open."""
    descriptor = os.memfd_create("exitprint-key", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(f"{tls.certificate}\n{tls.key}".encode())
        file.flush()
        # Whoever protected the key with a password is not there to be asked.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=lambda: b"")
