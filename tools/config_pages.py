# SPDX-License-Identifier: Apache-2.0
"""The example, the page and the manual page of the configuration: `python -m tools.config_pages`.

All three are made from the keys that `detector.config.model` defines.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from detector.config.keys import Group, Key, default_of, keys_of
from detector.config.kinds import Kind, Nullable
from detector.config.model import Config
from tools.roff import bold, escaped, header, paragraph

_ROOT = Path(__file__).parents[1]
EXAMPLE = _ROOT / "deploy" / "exitprint.yml"
PAGE = _ROOT / "docs" / "configuration.md"
MANUAL = _ROOT / "deploy" / "man" / "exitprint.yml.5"

_MADE = "Made by `make generate` from detector/config/model.py."
_WIDTH = 100

_EXAMPLE_HEAD = f"""\
# SPDX-License-Identifier: Apache-2.0
# {_MADE}
#
# exitprint's configuration, for /etc/exitprint/exitprint.yml; exitprint.yml(5) is its manual page. Every key
# may
# be left out: what stands behind a # is the default, or an example where the default is no value. Keys with
# [reload] are taken over by `systemctl reload exitprint`, the others by a restart.
# `exitprint check-config FILE` says what is wrong with a file."""

_PAGE_HEAD = f"""\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- {_MADE} -->
# Configuration

The service reads one YAML file, `/etc/exitprint/exitprint.yml` where a package installed it. Every key may be
left out, and the file may be empty: a relay whose exits stand in its NAT rules needs no key at all. What is
in the file is validated as a whole before anything starts; each mistake is one line with the file, the line,
the key, the value and what is expected. A file that somebody else than root may change is refused.

```
exitprint check-config /etc/exitprint/exitprint.yml          # what would be refused, and why
exitprint check-config --json /etc/exitprint/exitprint.yml   # what it comes to, with every default
systemctl reload exitprint                                   # take over what needs no restart
```

A reload takes over the keys that are marked so. The others keep their value until a restart: the log names
them, and so do `exitprint status` and the metric `exitprint_config_restart_required`. A file that is not
accepted changes nothing.

Durations have a unit: `10s`, `24h`, `1m30s`. What YAML would take for something else, such as a date, a
number as the relay's name, or an IPv6 address in brackets, stands in quotes: `listen: "[::1]:9973"`.

| key | what it is for | a value is | default | changed by |
| --- | --- | --- | --- | --- |
"""

_PAGE_FOOT = """
## Who may read the page: web_config_file

`web_config_file` names a file in the format of
[Prometheus' exporter toolkit](https://prometheus.io/docs/prometheus/latest/configuration/https/):
`tls_server_config` (`cert_file`, `key_file`, `client_auth_type`, `client_ca_file`, `client_allowed_sans`,
`min_version`, `max_version`, `cipher_suites`, `prefer_server_cipher_suites`), `http_server_config` (`http2`)
and `basic_auth_users`. [deploy/web.yml](../deploy/web.yml) is an example. The toolkit's other keys (`cert`,
`key` and `client_ca` with the text itself, `curve_preferences`, `headers`, `rate_limit`) are refused by name.
The file, and every file that it names, is root's and nobody else may change it; a key is readable for root
and a group at most.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as a person sees it.

    Attributes:
        name: with the group that it is in, such as ``tables.peers``.
        default: as it is written, or in words.
        shown: a value for the example.
    """

    name: str
    key: Key
    default: str
    shown: str


def entries(model: type[Any] = Config, inside: str = "") -> Iterator[Entry]:
    """Every key, in the order of the file; those of a group follow it."""
    defaults = {one.name: one for one in fields(model)}
    for name, key in keys_of(model).items():
        value = "" if key.default else key.kind.write(default_of(defaults[name]))
        yield Entry(inside + name, key, key.default or value, key.example or value)
        if isinstance(key.kind, Group):
            yield from entries(key.kind.model, f"{inside}{name}.")


def example() -> str:
    """The example file: all keys, none of them set."""
    parts = [_EXAMPLE_HEAD]
    for entry in entries():
        depth = entry.name.count(".")
        indent = "# " + "  " * depth
        said = _sentence(entry.key.text, f"default: {entry.key.default}" if entry.key.default else "")
        if entry.key.live:
            said += " [reload]"
        parts.append("" if not depth else "#")
        parts += (f"{indent}# {line}" if depth else f"# {line}" for line in _wrapped(said))
        name = entry.name.rpartition(".")[2]
        parts.append(
            f"{indent}{name}:" if isinstance(entry.key.kind, Group) else f"{indent}{name}: {entry.shown}"
        )
    return "\n".join(parts) + "\n"


def page() -> str:
    """docs/configuration.md."""
    rows = []
    for entry in entries():
        changed = "reload" if entry.key.live else "restart"
        default = "–" if isinstance(entry.key.kind, Group) else _code(entry)
        cells = (f"`{entry.name}`", entry.key.text, _expected(entry.key.kind), default, changed)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return _PAGE_HEAD + "".join(rows) + _PAGE_FOOT


def manual() -> str:
    """exitprint.yml(5)."""
    parts = [
        header("exitprint.yml", 5, "exitprint", "the configuration of exitprint"),
        ".SH SYNOPSIS\n.I /etc/exitprint/exitprint.yml\n",
        ".SH DESCRIPTION\n",
        paragraph(
            "The service exitprint(8) reads one YAML file. Every key may be left out, and the file may be "
            "empty. It is validated as a whole before anything starts: each mistake is one line with the "
            "file, the line, the key, the value and what is expected. A file that somebody else than root "
            "may change is refused."
        ),
        paragraph(
            "A reload (SIGHUP) takes over the keys that are marked so; the others need a restart, and the "
            "log names them. A file that is not accepted changes nothing."
        ),
        ".SH KEYS\n",
        *(_manual_entry(entry) for entry in entries()),
        ".SH FILES\n.TP\n.I /etc/exitprint/web.yml\n",
        "TLS, client certificates and passwords for the page and /metrics, where web_config_file names it.\n",
        ".SH SEE ALSO\n.BR exitprint (8)\n",
    ]
    return "".join(parts)


def _manual_entry(entry: Entry) -> str:
    group = isinstance(entry.key.kind, Group)
    default = entry.default or "none"
    said = [entry.key.text]
    if not group:
        said.append(f"Expected: {_expected(entry.key.kind)}. Default: {default}.")
    said.append("Taken over by a reload." if entry.key.live else "Needs a restart.")
    return f".TP\n{bold(entry.name)}\n{escaped(' '.join(said))}\n"


def _expected(kind: Kind) -> str:
    """What a value is; a list of other keys stands in rows of their own."""
    inner = kind.inner if isinstance(kind, Nullable) else kind
    return "a group of keys" if isinstance(inner, Group) else kind.expected


def _code(entry: Entry) -> str:
    return entry.key.default or f"`{entry.default}`"


def _sentence(text: str, more: str) -> str:
    return f"{text.removesuffix('.')}; {more}." if more else text


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Write all three."""
    for path, text in ((EXAMPLE, example()), (PAGE, page()), (MANUAL, manual())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
