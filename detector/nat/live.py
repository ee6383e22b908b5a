# SPDX-License-Identifier: Apache-2.0
"""The source-NAT rules that the current network namespace has now, from nft and both kinds of iptables.

An edge: it runs the tools and reads two files. CAP_NET_ADMIN is enough for nft and for iptables-nft-save.
iptables-legacy-save opens a raw socket, so it wants CAP_NET_RAW as well: the service asks a process that
has it (`detector.daemon.legacy`). Without it, rules of iptables-legacy are reported as not understood. A
file that only root or group root may read tells whether there are any. No tool is run that would load a
kernel module or take iptables' lock: iptables-legacy-save is started only when the kernel already lists a
legacy table ``nat``.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from detector.base.errors import HostError, NotYet, UsageError
from detector.base.family import Family
from detector.nat.bounded import run_bounded
from detector.nat.iptables import iptables_listing, nat_families
from detector.nat.model import Base, NotUnderstood, RuleSet, Where
from detector.nat.nftables import NamedSet, NftListing, needed_sets, needs_outline, nft_listing
from detector.nat.walk import Branch, Entry, Hooked, Unclear, walked

TIMEOUT = 10.0
"""Seconds that a tool may take; 20,000 elements take nft under one."""

SET_TIMEOUT = 3.0
"""Seconds for the elements of one set."""

MAX_OUTPUT = 64 << 20
"""Bytes that nft or iptables-save may print; 20,000 rules are about 10 MB."""

MAX_SET = 8 << 20
"""Bytes of one set: about 150,000 elements."""

LegacySaves = Callable[[Family, float], str]
"""What ``iptables-legacy-save`` prints of a family within so many seconds; raises HostError."""

_SEARCH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
_TOOLS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_WORDS = {Family.IPV4: "ip", Family.IPV6: "ip6"}


def read_live(timeout: float = TIMEOUT, legacy_saves: LegacySaves | None = None) -> RuleSet:
    """The source-NAT rules of this thread's network namespace.

    Args:
        timeout: seconds that each tool may take.
        legacy_saves: asks a helper that may open raw sockets for what ``iptables-legacy-save`` prints of a
            family; None: run it here.

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
        if nft is None
        or nft.prefixes
        or any(_is_compat(entry) for one in nft.hooked for entry in _entries(one))
    ]
    legacy = [_legacy(family, timeout, legacy_saves) for family in Family if has_legacy_nat(family)]
    return merged(nft, [text for text in saved if text], legacy)


def merged(nft: NftListing | None, saved: list[str], legacy: list[str | NotUnderstood]) -> RuleSet:
    """One rule set of what the tools say.

    A table that iptables-nft wrote is read from its own tool, because nft shows its rules only in part; every
    other table is nft's. The rules of iptables-legacy come on top.

    Args:
        nft: what nft lists, or None without nft.
        saved: what iptables-nft-save and ip6tables-nft-save print.
        legacy: what iptables-legacy-save and ip6tables-legacy-save print, or why it cannot be read.
    """
    families = nat_families("\n".join(saved)) if saved else frozenset[Family]()
    shown = families if nft is None else families & {one for one in Family if _WORDS[one] in nft.compat}
    hooked = [] if nft is None else [_for_nft(one) for one in nft.hooked if not _is_shown(one.base, shown)]
    listings = [iptables_listing(one) for one in saved if "*" in one]
    prefixes = {base.base.family for one in listings for base in one.hooked if base.stateless}
    unread = [] if nft is None else [one for one in nft.unread if not _is_read(one, prefixes)]
    marks = [] if nft is None else [nft.marks]
    hooked += (one for listing in listings for one in listing.hooked if one.stateless)
    for listing in listings:
        ours = [one for one in listing.hooked if _is_shown(one.base, shown)]
        hooked += ours
        unread += listing.unread if ours else ()
        marks += [listing.marks] if ours else []
    for listing in (iptables_listing(one) for one in legacy if isinstance(one, str) and "*" in one):
        hooked += listing.hooked
        unread += listing.unread
        marks.append(listing.marks)
    unread += (one for one in legacy if isinstance(one, NotUnderstood))
    return walked(hooked, unread, "".join(marks))


def _is_read(one: NotUnderstood, prefixes: set[str]) -> bool:
    """Whether iptables-save tells what nft could not show of a translation of prefixes."""
    return one.compat and one.where.family in prefixes


def _entries(hooked: Hooked) -> Iterator[Entry]:
    return (entry for rules in hooked.chains.values() for entry in rules)


def _is_compat(entry: Entry) -> bool:
    return any(isinstance(one.action, Unclear) and one.action.compat for one in entry.branches)


def _is_shown(base: Base, shown: frozenset[Family]) -> bool:
    return base.table == "nat" and base.family in {_WORDS[family] for family in shown}


def _for_nft(hooked: Hooked) -> Hooked:
    """iptables-save was asked and does not show these rules of iptables-nft either."""
    if not any(_is_compat(entry) for entry in _entries(hooked)):
        return hooked
    reason = "it was written by iptables-nft, and no iptables-save shows its table"
    chains = {
        name: [replace(one, branches=(Branch(Unclear(reason)),)) if _is_compat(one) else one for one in rules]
        for name, rules in hooked.chains.items()
    }
    return replace(hooked, chains=chains)


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


def _nft(timeout: float) -> NftListing | None:
    """What nft lists: first without elements, then only the sets that rules on the way to source NAT name."""
    tool = shutil.which("nft", path=_SEARCH)
    if tool is None:
        return None
    end = time.monotonic() + timeout
    listing = _run([tool, "-j", "-t", "list", "ruleset"], timeout)
    outline = _run([tool, "-t", "list", "ruleset"], timeout) if needs_outline(listing) else ""
    texts, large = [listing], list[NamedSet]()
    room = MAX_OUTPUT
    try:
        for kind, name in needed_sets(listing):
            text = _elements(tool, kind, name, end, room)
            if text is None:
                large.append(name)
            else:
                room -= len(text)
                texts.append(text)
        return nft_listing(texts, outline, live=True, large=large)
    except UsageError as error:
        hint = "nft 1.0.6 may fail on tables with flags: remove the flags of the table"
        raise HostError(f"what nft lists cannot be read: {error.what}", hint) from error


def _elements(tool: str, kind: str, name: NamedSet, end: float, room: int) -> str | None:
    """What nft lists of one set; None where it is too large, slow or gone."""
    left = min(end - time.monotonic(), SET_TIMEOUT)
    if left <= 0 or room <= 0:
        return None
    try:
        return _run([tool, "-j", "list", kind, *name], left, min(room, MAX_SET))
    except HostError:
        return None


def _save(family: Family, timeout: float) -> str:
    tool = _tool(_TOOLS[family], "nft")
    return _run([tool], timeout) if tool else ""


def has_legacy_nat(family: Family) -> bool:
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


def _legacy(family: Family, timeout: float, saves: LegacySaves | None) -> str | NotUnderstood:
    """What iptables-legacy-save prints, or the doubt that it cannot."""
    name = _TOOLS[family]
    try:
        return (saves or legacy_save)(family, timeout)
    except NotYet:  # a tool that is slow once is no change of the rules
        raise
    except HostError as error:
        reason = f"there is a table of {name}-legacy, and {error.what}"
    where = Where("iptables", _WORDS[family], "nat", "POSTROUTING")
    return NotUnderstood(where, f"{name}-legacy -t nat", reason)


def legacy_save(family: Family, timeout: float = TIMEOUT) -> str:
    """What ``iptables-legacy-save`` (or ip6tables') prints; it needs CAP_NET_RAW, and loads no module.

    Raises:
        HostError: the tool is not here or fails.
        NotYet: it takes longer than `timeout` seconds.
    """
    name = _TOOLS[family]
    tool = _tool(name, "legacy")
    if tool is None:
        raise HostError(f"no {name}-legacy-save is here to read it", "apt-get install iptables")
    try:
        return _run([tool], timeout)
    except NotYet:
        raise
    except HostError as error:
        what = f"{name}-legacy-save cannot read its table; without CAP_NET_RAW it never can"
        raise HostError(what, error.hint) from error


def _run(command: list[str], timeout: float, most: int = MAX_OUTPUT) -> str:
    """Standard output of a tool.

    Raises:
        HostError: it fails, or prints more than `most` bytes.
        NotYet: it takes longer than `timeout` seconds.
    """
    name = Path(command[0]).name
    try:
        done = run_bounded(command, timeout=timeout, most=most)
    except TimeoutError:
        what = f"{name} did not answer within {timeout:g} s"
        raise NotYet(what, f"see what holds it: run `{' '.join(command)}` by hand") from None
    except OverflowError:
        hint = f"run `{' '.join(command)}` by hand, and see what fills it"
        raise HostError(f"{name} printed more than {most >> 20} MiB", hint) from None
    except OSError as error:
        raise HostError(f"{name} cannot be started: {error.strerror}", f"check {command[0]}") from error
    if done.status:
        said = done.stderr.strip().splitlines()
        refused = any("permitted" in line or "denied" in line for line in said)
        hint = "it needs CAP_NET_ADMIN" if refused else f"run `{' '.join(command)}` by hand"
        raise HostError(f"{name} failed: {said[0] if said else f'status {done.status}'}", hint)
    return done.stdout
