# SPDX-License-Identifier: Apache-2.0
"""The source-NAT rules that the current network namespace has now, from nft and both kinds of iptables.

An edge: it runs the tools and reads two files. CAP_NET_ADMIN is enough for nft and for iptables-nft-save.
iptables-legacy-save opens a raw socket, so it wants CAP_NET_RAW as well; without it, rules of
iptables-legacy are reported as not understood. A file that only root or group root may read tells whether
there are any. No tool is run that would load a kernel module or take iptables' lock: iptables-legacy-save is
started only when the kernel already lists a legacy table ``nat``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from detector.base.errors import HostError, NotYet, UsageError
from detector.base.family import Family
from detector.nat.iptables import nat_families, read_iptables_save
from detector.nat.model import NotUnderstood, RuleSet, Where, rule_set
from detector.nat.nftables import needs_outline, read_nft_json

TIMEOUT = 10.0
"""Seconds that a tool may take; 20,000 elements take nft under one."""

_SEARCH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
_TOOLS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_WORDS = {Family.IPV4: "ip", Family.IPV6: "ip6"}


def read_live(timeout: float = TIMEOUT) -> RuleSet:
    """The source-NAT rules of this thread's network namespace.

    Args:
        timeout: seconds that each tool may take.

    Raises:
        HostError: no tool is here, or one fails; the hint says what to do.
        NotYet: a tool does not answer in time.
    """
    nft = _nft(timeout)
    if nft is None and not _tool("iptables", "nft") and not _tool("iptables", "legacy"):
        raise HostError("neither nft nor iptables-save is on this host", "apt-get install nftables")
    saved = [
        _save(family, timeout)
        for family in Family
        if nft is None or any(one.compat for one in nft.not_understood)
    ]
    legacy = [_legacy(family, timeout) for family in Family if _has_legacy_nat(family)]
    return merged(nft, [text for text in saved if text], legacy)


def merged(nft: RuleSet | None, saved: list[str], legacy: list[str | NotUnderstood]) -> RuleSet:
    """One rule set of what the tools say.

    A table that iptables-nft wrote is read from its own tool, because nft shows its rules only in part; every
    other table is nft's. The rules of iptables-legacy come on top.

    Args:
        nft: what nft lists, or None without nft.
        saved: what iptables-nft-save and ip6tables-nft-save print.
        legacy: what iptables-legacy-save and ip6tables-legacy-save print, or why it cannot be read.
    """
    text = "\n".join(saved)
    shown = nat_families(text) if nft is None else nat_families(text) & _compat_families(nft)
    rules = [] if nft is None else [rule for rule in nft.rules if not _is_shown(rule.where, shown)]
    unread = (
        []
        if nft is None
        else [_hopeless(one) for one in nft.not_understood if not _is_shown(one.where, shown)]
    )
    for one in saved:
        if nat_families(one) & shown:
            more = read_iptables_save(one)
            rules += more.rules
            unread += more.not_understood
    for piece in legacy:
        if isinstance(piece, NotUnderstood):
            unread.append(piece)
        elif nat_families(piece):
            more = read_iptables_save(piece)
            rules += more.rules
            unread += more.not_understood
    return rule_set(rules, unread)


def _compat_families(nft: RuleSet) -> frozenset[Family]:
    """The families whose table ``nat`` holds rules of iptables-nft."""
    named = {one.where.family for one in nft.not_understood if one.compat and one.where.table == "nat"}
    return frozenset(family for family, word in _WORDS.items() if word in named)


def _is_shown(where: Where, shown: frozenset[Family]) -> bool:
    return where.table == "nat" and where.family in {_WORDS[family] for family in shown}


def _hopeless(one: NotUnderstood) -> NotUnderstood:
    """iptables-save was asked and does not show this rule either."""
    if not one.compat:
        return one
    return replace(one, reason="it was written by iptables-nft, and no iptables-save shows its table")


def _tool(name: str, variant: str) -> str | None:
    """The path of ``NAME-save`` of a variant (``nft`` or ``legacy``), or None.

    Where only ``NAME-save`` is there, the program behind it says which variant it is.
    """
    found = shutil.which(f"{name}-{variant}-save", path=_SEARCH)
    plain = None if found else shutil.which(f"{name}-save", path=_SEARCH)
    if plain is None:
        return found
    is_nft = "nft" in Path(plain).resolve().name
    return plain if is_nft == (variant == "nft") else None


def _nft(timeout: float) -> RuleSet | None:
    tool = shutil.which("nft", path=_SEARCH)
    if tool is None:
        return None
    listing = _run([tool, "-j", "list", "ruleset"], timeout)
    outline = _run([tool, "-t", "list", "ruleset"], timeout) if needs_outline(listing) else ""
    try:
        return read_nft_json(listing, outline)
    except UsageError as error:
        hint = "nft 1.0.6 may fail on tables with flags: remove the flags of the table"
        raise HostError(f"what nft lists cannot be read: {error.what}", hint) from error


def _save(family: Family, timeout: float) -> str:
    tool = _tool(_TOOLS[family], "nft")
    return _run([tool], timeout) if tool else ""


def _has_legacy_nat(family: Family) -> bool:
    """Whether the kernel has a table ``nat`` of iptables-legacy in this thread's namespace, or may."""
    names = Path(f"/proc/thread-self/net/{_WORDS[family]}_tables_names")
    try:
        return "nat" in names.read_text().split()
    except FileNotFoundError:
        return False
    except PermissionError:
        return _has_module(f"{_TOOLS[family].removesuffix('s')}_nat")


def _has_module(name: str) -> bool:
    """Whether a kernel module is loaded or built in; True where nothing tells."""
    if Path("/sys/module", name).exists():
        return True
    builtin = Path("/lib/modules", os.uname().release, "modules.builtin")
    try:
        return f"/{name}.ko" in builtin.read_text()
    except OSError:
        return True


def _legacy(family: Family, timeout: float) -> str | NotUnderstood:
    """What iptables-legacy-save prints, or the doubt that it cannot."""
    tool = _tool(_TOOLS[family], "legacy")
    reason = f"there is a table of {_TOOLS[family]}-legacy, but no {_TOOLS[family]}-legacy-save to read it"
    if tool is not None:
        try:
            return _run([tool], timeout)
        except HostError:
            reason = f"{_TOOLS[family]}-legacy-save cannot read its table; without CAP_NET_RAW it never can"
    where = Where("iptables", _WORDS[family], "nat", "POSTROUTING")
    return NotUnderstood(where, f"{_TOOLS[family]}-legacy -t nat", reason)


def _run(command: list[str], timeout: float) -> str:
    """Standard output of a tool.

    Raises:
        HostError: it fails.
        NotYet: it takes longer than `timeout` seconds.
    """
    name = Path(command[0]).name
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=timeout,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        what = f"{name} did not answer within {timeout:g} s"
        raise NotYet(what, f"see what holds it: run `{' '.join(command)}` by hand") from None
    except OSError as error:
        raise HostError(f"{name} cannot be started: {error.strerror}", f"check {command[0]}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        refused = any("permitted" in line or "denied" in line for line in said)
        hint = "it needs CAP_NET_ADMIN" if refused else f"run `{' '.join(command)}` by hand"
        raise HostError(f"{name} failed: {said[0] if said else f'status {done.returncode}'}", hint)
    return done.stdout.decode(errors="replace")
