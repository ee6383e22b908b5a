# SPDX-License-Identifier: Apache-2.0
"""Rules from a file, whatever wrote it: nft text, nft JSON, or iptables in any of its forms.

An edge. nft text is read by the only program that knows its grammar: nft loads it into a network namespace
that is thrown away, and lists it as JSON. The rules of this host are not touched.
"""

from __future__ import annotations

import codecs
import os
import re
import shutil
import sys
from pathlib import Path

from detector.base.errors import HostError, UsageError
from detector.nat.bounded import Done, run_bounded
from detector.nat.ipt_text import looks_like_iptables
from detector.nat.iptables import read_iptables_save
from detector.nat.model import RuleSet
from detector.nat.nftables import read_nft_json

TIMEOUT = 30.0
"""Seconds for loading a file into a namespace, all tries together."""

MAX_BYTES = 64 << 20
"""Of a file, and of what nft lists of it."""

_TRIES = 40
"""Loads of one text: each may name more interfaces that this host lacks."""

_OWN_NAMESPACE = ("--net", "--map-root-user")
_LOAD = """
for name in "$@"; do
    ip link add "$name" type dummy 2>/dev/null || ip link add "$name" type bridge 2>/dev/null
done
nft -f /dev/stdin
status=$?
[ $status -eq 0 ] || exit $((status == 1 ? 9 : status))
nft -j list ruleset
nft -t list ruleset
"""
_INTERFACE = re.compile(r"\b(?:iif|oif|devices?)\s*(?:[!=]=)?\s*(\{[^}]*\}|=\s*\{[^}]*\}|\S+)")
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,14}")
_MISSING = re.compile(
    r"^(?:/dev/stdin|[^:\n]+):(\d+):(\d+)-(\d+): Error: Interface does not exist", re.MULTILINE
)
_XT = re.compile(r"\bxt (?:target|match) \"")
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_rules_file(path: Path) -> RuleSet:
    """The source-NAT rules of a file; ``-`` is standard input.

    Raises:
        UsageError: the file cannot be read, or holds no rules.
        HostError: it is nft text, and this host cannot load it aside.
    """
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", "check the name and its permissions"
        ) from error
    if len(data) > MAX_BYTES:
        raise UsageError(
            f"{path} is larger than {MAX_BYTES >> 20} MiB", "give it the table of NAT rules alone"
        )
    return read_rules_text(decoded(data, str(path)), Path.cwd() if str(path) == "-" else path.parent)


def decoded(data: bytes, name: str) -> str:
    """A file's text, in whatever encoding editors and terminals write.

    Raises:
        UsageError: it is no text.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding, "replace").lstrip("\ufeff")
    if data[1::2].count(0) > len(data) // 4:
        return data.decode("utf-16-le", "replace")
    if b"\0" in data:
        raise UsageError(f"{name} is not text", "give it rules as nft or iptables-save write them")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_rules_text(text: str, folder: Path | None = None) -> RuleSet:
    """The source-NAT rules of a text: nft JSON, iptables-save, else nft text.

    Args:
        text: the rules.
        folder: where files that nft text includes are looked for.

    Raises:
        UsageError: the text holds no rules.
        HostError: it is nft text, and this host cannot load it aside.
    """
    text = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\0", "")
    if not text.strip():
        raise UsageError("there are no rules: the input is empty", "give it what nft or iptables-save writes")
    if text.lstrip().startswith("{"):
        return read_nft_json(text)
    plain = _without_prompts(text)
    if plain.lstrip().startswith('{"nftables"'):
        return read_nft_json(plain)
    if re.search(r"^\s*(?:table|add table|define|include|flush ruleset)\b", plain, re.MULTILINE) is None or (
        re.search(r"^\s*\*\w+\s*$", text, re.MULTILINE)
    ):
        if looks_like_iptables(text):
            return read_iptables_save(text)
        plain = _nft_commands(plain) or plain
    if _XT.search(plain):
        raise UsageError(
            "nft's text shows rules of iptables-nft here, of which it leaves out what they do",
            "give it the output of `iptables-save` (and of `ip6tables-save`)",
        )
    listing, _, outline = _listed(plain, folder).partition("\n")
    return read_nft_json(listing, outline)


_PROMPT = re.compile(
    r"^(?:\[?[\w.-]+@[\w.-]+[^#$%>\n]*[#$%>]|[\w.-]+[#$%>]|[#$%>])\s+(?:sudo\s+)?(?:/\S+/)?(?:nft|cat|exit)\b.*$"
)


def _without_prompts(text: str) -> str:
    """Nft text out of a terminal: prompts and the commands behind them become empty lines."""
    return "\n".join(
        "" if _PROMPT.match(line) or re.fullmatch(r"\S+@\S+[#$]\s*", line) else line
        for line in text.split("\n")
    )


def _nft_commands(text: str) -> str:
    """The commands of ``PostUp = nft add rule ...`` or of a script, as nft's own file has them."""
    lines: list[str] = []
    for line in text.splitlines():
        if re.match(r"(?i)\s*(post|pre)down\s*=", line):
            continue
        for piece in re.split(r";\s*(?=(?:sudo\s+)?nft\b)|&&", line):
            found = re.search(r"(?:^|[\s=])nft\s+(?:-\w+\s+)*['\"]?((?:add|insert|create)\s.*)$", piece)
            if found:
                lines.append(
                    found[1].strip().rstrip("'\"").replace("\\;", ";").replace("'", "").replace("\\{", "{")
                )
    return "\n".join(lines) + "\n" if lines else ""


def _listed(text: str, folder: Path | None) -> str:
    """The text as `nft -j list ruleset` prints it, in one line, and after it as `nft -t list ruleset` does.

    Raises:
        UsageError: nft does not take the text.
        HostError: this host has no nft, or no namespaces.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if not all(shutil.which(tool, path=path) for tool in ("nft", "unshare")):
        raise HostError(
            "nft text can only be read by nft", f"apt-get install nftables util-linux; {_OTHERWISE}"
        )
    interfaces = dict.fromkeys(_interfaces(text))
    for _ in range(_TRIES):
        done = _loaded(text, folder, list(interfaces), path)
        missing = [name for name in _missing(text, done.stderr) if name not in interfaces]
        if done.status == 0 or not missing:
            break
        interfaces |= dict.fromkeys(missing)
    if done.status == 0:
        return done.stdout
    raise _refused(done)


def _loaded(text: str, folder: Path | None, interfaces: list[str], path: str) -> Done:
    options = _OWN_NAMESPACE if os.geteuid() else _OWN_NAMESPACE[:1]
    command = ["unshare", *options, "sh", "-c", _LOAD, "sh", *interfaces]
    try:
        return run_bounded(
            command,
            timeout=TIMEOUT,
            most=MAX_BYTES,
            text=text,
            folder=folder,
            environment={**os.environ, "PATH": path},
        )
    except TimeoutError:
        raise HostError(f"nft did not load the rules within {TIMEOUT:g} s", _OTHERWISE) from None
    except OverflowError:
        raise HostError(f"nft lists more than {MAX_BYTES >> 20} MiB of this file", _OTHERWISE) from None
    except OSError as error:
        raise HostError(f"nft cannot be started: {error.strerror}", _OTHERWISE) from error


def _missing(text: str, errors: str) -> list[str]:
    """The interfaces that nft looked for in vain: it prints where their names stand."""
    lines = text.split("\n")
    found: list[str] = []
    for number, first, last in _MISSING.findall(errors):
        if int(number) <= len(lines):
            name = lines[int(number) - 1].encode()[int(first) - 1 : int(last)].decode(errors="replace")
            if _NAME.fullmatch(name.strip('"')):
                found.append(name.strip('"'))
    return found


def _refused(done: Done) -> HostError | UsageError:
    """Why nft did not take a text."""
    lines = done.stderr.strip().splitlines() or [f"status {done.status}"]
    said = next((line for line in lines if "Error:" in line), lines[0]).replace("/dev/stdin:", "line ")
    killed = done.status - 128 if done.status > 128 else 0
    if killed or "Segmentation fault" in done.stderr or "core dumped" in done.stderr:
        return UsageError("nft crashed on these rules, which is a fault of the nft of this host", _JSON)
    if "not permitted" in said or done.status != 9:
        return HostError(f"this host makes no network namespace to read nft text in: {said}", _OTHERWISE)
    if "Could not process rule" in said:
        hint = f"the kernel here may lack a module that they need; {_JSON}"
    else:
        hint = f"see `nft -c -f` of the file; where it was written by a newer nft, {_JSON}"
    return UsageError(f"nft does not take these rules: {said}", hint)


_JSON = "give it the output of `nft -j list ruleset` on the relay, which needs neither nft nor modules here"
_OTHERWISE = "run it as root, or give it the output of `nft -j list ruleset`"


def _interfaces(text: str) -> list[str]:
    """Names that stand after iif, oif and device: nft only loads a rule with an interface that is there."""
    found = {name for group in _INTERFACE.findall(text) for name in _NAME.findall(group)}
    return sorted(found - {"lo"})[:256]
