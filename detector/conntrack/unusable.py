# SPDX-License-Identifier: Apache-2.0
"""What is not conntrack's is named for what it is, with the way to something that can be used."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ENOUGH = 1 << 16
RECORD = "record one with `conntrack -E -e NEW -o timestamp > FILE`"
_RULES = (
    rb"^[ \t]*(?:#![^\n]*nft|(?:add |create )?table (?:ip|ip6|inet) \S+ \{|\{\"nftables\")"
    rb"|^\*(?:nat|filter|mangle|raw)\b|^-A POSTROUTING "
)
_STARTS: Sequence[tuple[bytes, str, str]] = (
    (
        b"LPKSHHRH",
        "a journal of systemd",
        "print it: `journalctl --file FILE -t conntrack | exitprint analyze -`",
    ),
    (
        b"\xd4\xc3\xb2\xa1",
        "a packet capture",
        f"packets do not show what they were before translation: {RECORD}",
    ),
    (
        b"\xa1\xb2\xc3\xd4",
        "a packet capture",
        f"packets do not show what they were before translation: {RECORD}",
    ),
    (
        b"\x4d\x3c\xb2\xa1",
        "a packet capture",
        f"packets do not show what they were before translation: {RECORD}",
    ),
    (
        b"\x0a\x0d\x0d\x0a",
        "a packet capture",
        f"packets do not show what they were before translation: {RECORD}",
    ),
    (b"\x0c\xa5", "an nfcapd file", f"flow exports are not read here: {RECORD}"),
    (b"SQLite format 3", "an SQLite database", "print the events from it, one a line"),
    (b"%PDF", "a PDF", "give the text that it was made of"),
    (b"\x7fELF", "a program", RECORD),
    (b"-----BEGIN PGP", "an encrypted file", "decrypt it: `gpg -d FILE | exitprint analyze -`"),
    (b"age-encryption.org", "an encrypted file", "decrypt it: `age -d FILE | exitprint analyze -`"),
)
_TEXTS: Sequence[tuple[bytes, str, str]] = (
    (_RULES, "a set of rules",
     "judge the rules with `exitprint audit FILE`, or give them with --rules beside a listing of flows"),
    (rb"^(?:interface|peer): \S|^\S+\t[A-Za-z0-9+/]{43}=", "what `wg show` prints",
     "give it with --peers beside a listing of flows"),
    (rb"\bIN=\S{0,20} OUT=\S{0,20} .{0,400}?\bSRC=", "a log of packets (the LOG target, ulogd2's PRINTPKT)",
     f"it does not hold what the source was translated to: {RECORD}, or give ulogd2 a stack with NFCT"),
    (rb"^cpu=\d+\s+\t?(?:found|searched)=", "what `conntrack -S` prints", f"it is only counters: {RECORD}"),
    (rb"^[ \t]*\d{1,9}[ \t\r]*$", "a number, as `conntrack -C` prints", f"it is only a count: {RECORD}"),
    (rb"\bproto=\d{1,3} src=\S{2,45} dst=\S{2,45} .{0,400}?\bmask-src=", "a list of expectations",
     f"those are flows that may come: {RECORD}"),
    (rb"\blayer3\b.{0,400}?\borig\.|\"orig\.ip\.saddr\":", "ulogd2's output without addresses as text",
     "add IP2STR to its stack, behind NFCT"),
    (rb"^\d\d:\d\d:\d\d\.\d{6} (?:IP6? |\S+ (?:In|Out) )", "what tcpdump prints",
     f"packets do not show what they were before translation: {RECORD}"),
    (rb"^(?:Netid\s+)?State\s+Recv-Q|^Active Internet connections|^Proto\s+Recv-Q", "a list of sockets",
     f"a relay's flows have none: {RECORD}"),
    (rb"^(?:Id|ID|Conn-?ID|CONN ID|Source|Pre-NAT)\b.{0,400}?(?:source|Source|Original|Post-NAT|Destination)",
     "a table for people", "print conntrack's own lines: `conntrack -L`, or `show log conntrack` on VyOS"),
    (rb"^(?:Date first seen|ts,te,td)", "what nfdump prints", f"flow exports are not read here: {RECORD}"),
    (rb"^[ \t]*(?:<!DOCTYPE html|<html)", "a web page", RECORD),
    (rb"[Pp]ermission denied|Operation not permitted|you need to be root|command not found|No such file",
     "an error message in place of a listing", "run conntrack as root"),
    (rb"conntrack v[\d.]+ \(conntrack-tools\): 0 flow entries", "an empty listing",
     "list on the relay, in the network namespace that translates, while there is traffic"),
)  # fmt: skip


def named(sample: bytes) -> tuple[str, str] | None:
    """What a file that begins so is, and what to do; None where nobody knows.

    Args:
        sample: its beginning, unpacked.
    """
    for start, name, way_out in _STARTS:
        if sample.startswith(start):
            return name, way_out
    if len(sample) > 262 and sample[257:262] == b"ustar":
        return "a tar archive", "unpack it: `tar -xOf FILE | exitprint analyze -`"
    for pattern, name, way_out in _TEXTS:
        if re.search(pattern, sample[:_ENOUGH], re.MULTILINE):
            return name, way_out
    if not sample.strip():
        return "empty", RECORD
    return None
