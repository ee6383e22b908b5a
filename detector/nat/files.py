# SPDX-License-Identifier: Apache-2.0
"""Rules from a file, whatever wrote it: nft text, nft JSON, or iptables-save.

An edge. nft text is read by the only program that knows its grammar: nft loads it into a network namespace
that is thrown away, and lists it as JSON. The rules of this host are not touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from detector.base.errors import HostError, UsageError
from detector.nat.iptables import read_iptables_save
from detector.nat.model import RuleSet
from detector.nat.nftables import read_nft_json

TIMEOUT = 30.0
"""Seconds for loading a file into a namespace."""

_OWN_NAMESPACE = ("--net", "--map-root-user")
_LOAD = """
for name in "$@"; do
    ip link add "$name" type dummy 2>/dev/null || ip link add "$name" type bridge 2>/dev/null
done
nft -f /dev/stdin || exit 9
nft -j list ruleset
nft -t list ruleset
"""
_INTERFACE = re.compile(r"\b(?:iif|oif|devices?)\s*(?:[!=]=)?\s*(\{[^}]*\}|=\s*\{[^}]*\}|\S+)")
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,14}")


def read_rules_file(path: Path) -> RuleSet:
    """The source-NAT rules of a file; ``-`` is standard input.

    Raises:
        UsageError: the file cannot be read, or holds no rules.
        HostError: it is nft text, and this host cannot load it aside.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text", "give it rules as nft or iptables-save write them") from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", "check the name and its permissions"
        ) from error
    return read_rules_text(text, Path.cwd() if str(path) == "-" else path.parent)


def read_rules_text(text: str, folder: Path | None = None) -> RuleSet:
    """The source-NAT rules of a text: nft JSON, iptables-save, else nft text.

    Args:
        text: the rules.
        folder: where files that nft text includes are looked for.

    Raises:
        UsageError: the text holds no rules.
        HostError: it is nft text, and this host cannot load it aside.
    """
    if not text.strip():
        raise UsageError("there are no rules: the input is empty", "give it what nft or iptables-save writes")
    if text.lstrip().startswith("{"):
        return read_nft_json(text)
    if re.search(r"^\*\w+\s*$", text, re.MULTILINE):
        return read_iptables_save(text)
    listing, _, outline = _listed(text, folder).partition("\n")
    return read_nft_json(listing, outline)


def _listed(text: str, folder: Path | None) -> str:
    """The text as `nft -j list ruleset` prints it, in one line, and after it as `nft -t list ruleset` does.

    Raises:
        UsageError: nft refuses the text.
        HostError: no namespace can be made, or nft is not here.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if not shutil.which("nft", path=path) or not shutil.which("unshare", path=path):
        raise HostError(
            "nft text can only be read by nft", f"apt-get install nftables util-linux; {_OTHERWISE}"
        )
    options = _OWN_NAMESPACE if os.geteuid() else _OWN_NAMESPACE[:1]
    command = ["unshare", *options, "sh", "-c", _LOAD, "sh", *_interfaces(text)]
    environment = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env=environment,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"nft did not load the rules within {TIMEOUT:g} s", _OTHERWISE) from None
    except OSError as error:
        raise HostError(f"nft cannot be started: {error.strerror}", _OTHERWISE) from error
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0].replace(
        "/dev/stdin:", "line "
    )
    if done.returncode == 9 and "not permitted" not in said:
        raise UsageError(f"nft does not take these rules: {said}", "see `nft -c -f` of the file")
    raise HostError(f"this host makes no network namespace to read nft text in: {said}", _OTHERWISE)


_OTHERWISE = "run it as root, or give it the output of `nft -j list ruleset`"


def _interfaces(text: str) -> list[str]:
    """Names that stand after iif, oif and device: nft only loads a rule with an interface that is there."""
    found = {name for group in _INTERFACE.findall(text) for name in _NAME.findall(group)}
    return sorted(found - {"lo"})
