# SPDX-License-Identifier: Apache-2.0
"""What is said of a `web_config_file`, and which files are not safe enough to be read."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from detector.config.document import ConfigError
from detector.config.tls import WebConfig, marks_of
from detector.config.web import load_web
from tests.unit.publish.http.certificates import PASSWORD, Papers, hashed, papers

FOREIGN = "is a key of Prometheus' exporter toolkit that is not supported here: "
SUITES = ", ".join(
    f"TLS_ECDHE_{key}_WITH_{suite}"
    for key in ("ECDSA", "RSA")
    for suite in ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256")
).replace(", TLS_ECDHE_RSA_WITH_CHACHA", " or TLS_ECDHE_RSA_WITH_CHACHA")
TLS = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"


@pytest.fixture
def made(tmp_path: Path) -> Papers:
    """Certificates, keys and room for a `web.yml`."""
    return papers(tmp_path)


def problems(path: Path, *, guarded: bool = False) -> list[str]:
    """What is said, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load_web(path, guarded=guarded)
    assert PASSWORD not in str(caught.value)
    return [line.removeprefix(f"{path}:") for line in caught.value.problems]


def test_everything_is_read(made: Papers) -> None:
    """Texts of the files, hashes and choices arrive, and survive the way to another process."""
    more = (
        "  client_allowed_sans: [prometheus.example.net]\n  min_version: TLS13\n"
        "  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n"
    )
    config, marks = load_web(made.asking(more=more), guarded=True)
    assert config.tls
    assert config.tls.certificate == made["server.pem"].read_text()
    assert config.tls.key == made["server.key"].read_text()
    assert config.tls.client_ca == made["ca.pem"].read_text()
    assert (config.tls.minimum, config.tls.ciphers) == ("TLS13", ("ECDHE-ECDSA-AES128-GCM-SHA256",))
    assert list(config.users) == ["scraper"]
    assert WebConfig.of(config.as_message()) == config
    assert set(marks) == {str(made[name]) for name in ("web.yml", "server.pem", "server.key", "ca.pem")}
    assert marks_of(marks) == marks
    assert "PRIVATE" not in repr(config)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "tls_server_config:\n", "http_server_config:\n  http2: false\n"]
)
def test_a_file_that_asks_for_nothing_is_one(made: Papers, text: str) -> None:
    """As with the toolkit, an empty file is accepted: on loopback."""
    assert load_web(made.web(text), guarded=False)[0] == WebConfig()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "tls_server_config:\n  cert_file: server.pem\n",
            "1: tls_server_config.key_file: is missing: expected the name of a file",
        ),
        (
            TLS + "  min_version: TLS11\n",
            (
                '4: tls_server_config.min_version: "TLS11" is not TLS12 or TLS13 (the exporter toolkit has '
                "it, and it is not supported here: RFC 8996 forbids it)"
            ),
        ),
        (
            TLS + "  client_auth_type: RequireAnyClientCert\n",
            (
                '4: tls_server_config.client_auth_type: "RequireAnyClientCert" is not NoClientCert or '
                "VerifyClientCertIfGiven or RequireAndVerifyClientCert (the exporter toolkit has it, and it "
                "is not supported here: a certificate that nobody verifies says nothing)"
            ),
        ),
        (
            TLS + "  client_auth_type: RequireAndVerifyClientCert\n",
            (
                "4: tls_server_config.client_auth_type: RequireAndVerifyClientCert needs client_ca_file, "
                "which is missing"
            ),
        ),
        (
            TLS + "  client_ca_file: ca.pem\n",
            (
                "4: tls_server_config.client_ca_file: does nothing without client_auth_type: "
                "RequireAndVerifyClientCert"
            ),
        ),
        (
            TLS + "  min_version: TLS13\n  max_version: TLS12\n",
            "4: tls_server_config.min_version: TLS13 is above max_version (TLS12)",
        ),
        (
            TLS + "  keyfile: x\n",
            "4: tls_server_config.keyfile: unknown key: did you mean key_file?",
        ),
        (
            TLS + "  cipher_suites:\n  - TLS_CHACHA20_POLY1305_SHA256\n",
            (
                f'5: tls_server_config.cipher_suites[0]: "TLS_CHACHA20_POLY1305_SHA256" is not {SUITES} '
                "(suites of TLS 1.3 cannot be chosen, all of them are in use: leave it out)"
            ),
        ),
        (
            TLS + "  cipher_suites: [RC4]\n",
            f'4: tls_server_config.cipher_suites[0]: "RC4" is not {SUITES}',
        ),
        (
            "tls_server_config:\n  cert: |\n    -----BEGIN CERTIFICATE-----\n  key_file: server.key\n",
            (
                f"2: tls_server_config.cert: {FOREIGN}put the certificate in a file, and name that with "
                "cert_file"
            ),
        ),
        (
            TLS + "  client_ca: x\n",
            (
                f"4: tls_server_config.client_ca: {FOREIGN}put the certificates in a file, and name that "
                "with client_ca_file"
            ),
        ),
        (
            TLS + "  curve_preferences: [X25519]\n",
            f"4: tls_server_config.curve_preferences: {FOREIGN}leave it out, OpenSSL's own are in use",
        ),
        (
            "http_server_config:\n  headers: {X-Frame-Options: deny}\n",
            (
                f"2: http_server_config.headers: {FOREIGN}leave it out, every answer has the headers that "
                "protect it"
            ),
        ),
        (
            "rate_limit: {interval: 1s}\n",
            f"1: rate_limit: {FOREIGN}leave it out, connections and requests have limits of their own",
        ),
        (
            "only text\n",
            "1: expected keys with values, such as `basic_auth_users: {prometheus: <hash>}`",
        ),
        (
            "basic_auth_users:\n  'a:b': $2y$10$" + "a" * 53,
            '2: basic_auth_users.a:b: "a:b" is not a user\'s name, which is not empty and holds no colon',
        ),
        (
            "basic_auth_users:\n  scraper: correct horse battery\n",
            (
                "2: basic_auth_users.scraper: its value, not shown here, is not a bcrypt hash, "
                "as `htpasswd -nBC 10 NAME` makes it"
            ),
        ),
        (
            f"basic_auth_users:\n  scraper: $2y$31${'a' * 53}\n",
            (
                "2: basic_auth_users.scraper: its value, not shown here, is not a bcrypt hash, "
                "as `htpasswd -nBC 10 NAME` makes it (its cost is not from 4 to 15)"
            ),
        ),
        (
            "tls_server_config:\n  cert_file: nowhere.pem\n  key_file: server.key\n",
            '2: tls_server_config.cert_file: "nowhere.pem" cannot be read: no such file or directory',
        ),
        (
            "tls_server_config:\n  cert_file: server.key\n  key_file: server.key\n",
            '2: tls_server_config.cert_file: "server.key" is not a file of certificates in PEM',
        ),
        (
            "tls_server_config:\n  cert_file: server.pem\n  key_file: server.pem\n",
            '3: tls_server_config.key_file: "server.pem" is not a private key in PEM without a password',
        ),
        (
            "tls_server_config:\n  cert_file: server.pem\n  key_file: client.key\n",
            '3: tls_server_config.key_file: "client.key" is not the key of the certificate in cert_file',
        ),
        (
            "tls_server_config:\n  cert_file: .\n  key_file: server.key\n",
            '2: tls_server_config.cert_file: "." is not a regular file',
        ),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(made: Papers, text: str, said: str) -> None:
    """Line, key, value and what is expected; never a password."""
    made["server.pem"].chmod(0o600)
    assert [line.strip() for line in problems(made.web(text))] == [said]


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("server.key", 0o604, "server.key_file"),
        ("server.key", 0o644, "everybody may read it (its mode is 0644); expected chmod o-rwx"),
        ("server.key", 0o660, "others may change it (its mode is 0660); expected chmod go-w"),
        ("server.pem", 0o666, "others may change it (its mode is 0666); expected chmod go-w"),
        ("ca.pem", 0o664, "others may change it (its mode is 0664); expected chmod go-w"),
        ("web.yml", 0o666, "others may change it (its mode is 0666); expected chmod go-w"),
        ("web.yml", 0o644, "everybody may read it (its mode is 0644); expected chmod o-rwx"),
    ],
)
def test_unsafe_files_are_refused(made: Papers, name: str, mode: int, said: str) -> None:
    """A key or hashes that everybody reads, anything that others can change: named, with the mend."""
    path = made.asking()
    made[name].chmod(mode)
    (line,) = problems(path)
    assert said.removeprefix("server.") in line


@pytest.mark.parametrize("name", ["123", "no", "on", "2026-12-31", "0x1f", "'quoted'"])
def test_a_users_name_is_what_is_written(made: Papers, name: str) -> None:
    """As the toolkit has it: a number, a flag or a date in the place of a name is that name."""
    config, _ = load_web(made.web(f"basic_auth_users:\n  {name}: {hashed('x')}\n"), guarded=False)
    assert list(config.users) == [name.strip("'")]


def test_a_key_for_a_group_is_accepted(made: Papers) -> None:
    """Debian's ssl-cert keeps keys readable for its group."""
    made["server.key"].chmod(0o640)
    assert load_web(made.asking(), guarded=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: cannot give files away")
def test_another_users_file_is_refused(made: Papers) -> None:
    """Its owner could put another key there."""
    path = made.asking()
    os.chown(made["server.key"], 65_534, 65_534)
    (line,) = problems(path)
    assert '"server.key" is not root\'s: it belongs to user 65534; expected chown root' in line


def test_a_pipe_holds_up_nobody(made: Papers) -> None:
    """What is no file is refused, not waited for."""
    path = made.asking()
    made["server.key"].unlink()
    os.mkfifo(made["server.key"], 0o600)
    assert "is not a regular file" in problems(path)[0]


def test_a_key_with_a_password_is_refused_without_asking(made: Papers) -> None:
    """Nobody is there to type it."""
    key, locked = made["server.key"], made["locked.key"]
    command = ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", str(key), "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    text = TLS.replace("server.key", "locked.key")
    assert "is not a private key in PEM without a password" in problems(made.web(text))[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        TLS,
        f"basic_auth_users:\n  a: {hashed('x')}\n",
        TLS + "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.pem\n",
    ],
)
def test_beyond_loopback_it_takes_tls_and_credentials(made: Papers, text: str) -> None:
    """Half of it is refused there, and the line says how to say that it is meant."""
    (line,) = problems(made.web(text), guarded=True)
    assert "listen_beyond_loopback: true" in line
    load_web(made.web(text), guarded=False)


def test_credentials_of_either_kind_guard(made: Papers) -> None:
    """TLS with passwords, or with client certificates."""
    for password in (True, False):
        assert load_web(made.asking(password=password, certificate=not password), guarded=True)[0].guards
