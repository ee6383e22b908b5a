# SPDX-License-Identifier: Apache-2.0
"""What conntrack prints, in every form, and what it does not print."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detector.base.family import pack, unpack
from detector.conntrack import reader as reader_module
from detector.conntrack.addresses import Block
from detector.conntrack.forms import PLAIN, LineForm, recognise
from detector.conntrack.reader import Flows, Lines, Reader
from detector.conntrack.source import LONGEST_LINE, blocks

ICMP = (
    "icmp     1 29 src=10.64.0.2 dst=198.51.100.1 type=8 code=0 id=4711 [UNREPLIED] "
    "src=198.51.100.1 dst=203.0.113.70 type=0 code=0 id=4711 mark=0 use=1"
)
FROM = "src=10.64.0.2 dst=198.51.100.1"
BACK = "src=198.51.100.1 dst=203.0.113.70"
UDP = f"udp      17 30 {FROM} sport=4711 dport=53 [UNREPLIED] {BACK} sport=53 dport=4711"
TCP = f"{FROM} sport=4711 dport=7 packets=5 bytes=292 {BACK} sport=7 dport=4711 packets=3 bytes=188"
FORMS = {
    "event": f"[1700000000.123456]\t    [NEW] {UDP}",
    "event, extended": f"[1700000000.123456]\t    [NEW] ipv4     2 tcp      6 120 SYN_SENT {TCP}",
    "event, no time": f"    [NEW] {UDP}",
    "listed": f"tcp      6 7199 CLOSE {TCP} [ASSURED] mark=0 delta-time=0 use=1",
    "listed, all": f"ipv4     2 sctp     132 7199 COOKIE_WAIT {TCP} [OFFLOAD] [ASSURED] mark=0 "
    "secctx=a:b:c:s0 [start=Mon Nov 23 23:33:51 2026] use=1 id=317873501",
    "zone of both": f"{UDP} mark=0 zone=9 use=1",
    "zone of one": f"udp      17 29 {TCP.replace(' packets', ' zone-orig=9 packets', 1)} mark=0 use=1",
    "icmp": ICMP,
    "gre": f"gre      47 29 {FROM} srckey=0x1267 dstkey=0x0 [UNREPLIED] {BACK} srckey=0x0 dstkey=0x1267",
    "unknown": f"unknown  89 599 {FROM} [UNREPLIED] {BACK} mark=0 use=1",
    "windows": ICMP + "\r",
}
SIX = (
    "ipv6     10 icmpv6   58 29 src=fd00::2 dst=2001:db8::1 type=128 code=0 id=7 "
    "src=2001:db8::1 dst=2001:db8:113::70 type=129 code=0 id=7 mark=0 use=1"
)


def read(*lines: str) -> tuple[Flows | None, Reader]:
    """What a reader makes of some lines."""
    reader = Reader(PLAIN, Lines())
    return reader.read("".join(f"{line}\n" for line in lines).encode()), reader


def address(flows: Flows, column: str) -> str:
    """The only address of a column."""
    return str(unpack(getattr(flows, column)[0].tobytes()))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_line_is_read(form: str) -> None:
    """Tunnel address, destination and exit come out of events and entries of all protocols and options."""
    flows, reader = read(FORMS[form])
    assert flows is not None
    assert reader.lines.garbage == 0
    assert address(flows, "source") == "10.64.0.2"
    assert address(flows, "destination") == "198.51.100.1"
    assert address(flows, "exit") == "203.0.113.70"
    assert flows.zone[0] == (9 if "zone" in form else 0)
    assert (flows.time[0] == 1700000000.123456) == (form in {"event", "event, extended"})


def test_ipv6_is_read() -> None:
    """An IPv6 entry has its addresses and is told from IPv4 in the same block."""
    flows, _ = read(ICMP, SIX)
    assert flows is not None
    assert flows.four.tolist() == [True, False]
    assert flows.exit[1].tobytes() == pack(ip_address("2001:db8:113::70"))


def test_ports_differ_by_protocol() -> None:
    """The same number is another source port in another protocol."""
    flows, _ = read(FORMS["event"], FORMS["event, extended"], ICMP, FORMS["event"])
    assert flows is not None
    assert len(set(flows.port.tolist())) == 3


def test_other_lines_are_told_apart() -> None:
    """Ends of flows, untranslated flows, empty lines and the tool's own words are no garbage and no flows."""
    ended = FORMS["event"].replace("[NEW]", "[DESTROY]")
    plain = ICMP.replace("203.0.113.70", "10.64.0.2")
    flows, reader = read(
        ended, plain, "", "conntrack v1.4.7 (conntrack-tools): 2 flow entries have been shown."
    )
    assert flows is not None
    assert flows.ends.tolist() == [True, False]
    assert flows.translated.tolist() == [True, False]
    assert (reader.lines.destroys, reader.lines.entries, reader.lines.garbage) == (1, 1, 0)


def test_garbage_is_counted_with_its_number() -> None:
    """Bad lines among good ones are counted over blocks, empty lines count for the numbers."""
    reader = Reader(PLAIN, Lines())
    reader.read(f"{ICMP}\n\nwhat\n".encode())
    bad = ICMP.replace("203.0.113.70", "999.0.113.70")
    mixed = ICMP.replace("src=198.51.100.1", "src=2001:db8::1")
    reader.read(f"{bad}\n{ICMP}\n{mixed}\n".encode())
    assert (reader.lines.garbage, reader.lines.garbage_numbers) == (3, [3, 4, 6])
    assert reader.lines.entries == 2


def test_blocks_are_whole_lines() -> None:
    """A file without a last line feed loses nothing; an endless line becomes one short one."""
    assert b"".join(blocks(iter([b"a\nb"]))) == b"a\nb\n"
    assert b"".join(blocks(iter([b"a" * (2 * LONGEST_LINE) + b"\nb"]))).endswith(b"\nb\n")
    assert b"".join(blocks(iter([b"a" * (2 * LONGEST_LINE)]))) == b"?\n"


PIECES = st.one_of(
    st.sampled_from([*FORMS.values(), SIX, *ICMP.split(" ")]).map(str.encode),
    st.binary(max_size=30),
    st.sampled_from([b"src=", b" src=::", b"\n", b"zone=", b"[NEW]", b"\0", b"[99.9]"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=12), st.sampled_from([b"", b" ", b"\n"]))
@example([b"src=1 " * 3000], b" ")
def test_no_input_ends_in_a_traceback(pieces: list[bytes], between: bytes) -> None:
    """Whatever a file holds, its lines are flows, other lines or garbage, and nothing is lost."""
    content = between.join(pieces)
    reader = Reader(PLAIN, Lines())
    flows = [reader.read(block) for block in blocks(iter([content]))]
    lines = reader.lines
    known = lines.entries + lines.events + lines.updates + lines.destroys
    assert known + lines.garbage + lines.foreign == lines.read <= content.count(b"\n") + 1
    assert sum(len(one) for one in flows if one is not None) == known - lines.updates
    assert all(np.isfinite(one.port.astype(float)).all() for one in flows if one is not None)


@pytest.mark.parametrize("cut", range(len(FORMS["listed"]) - 1))
def test_a_cut_line_is_garbage_until_the_exit_is_whole(cut: int) -> None:
    """A file that is copied while it is written: no prefix of a line gives another exit."""
    flows, reader = read(FORMS["listed"][:cut])
    if flows is None:
        assert reader.lines.garbage == (cut > 0)
    else:
        assert address(flows, "exit") == "203.0.113.70"


def test_lines_that_ran_into_each_other_are_garbage() -> None:
    """Half a line with a whole one behind it has three sources, and says nothing for sure."""
    half = FORMS["event"][: FORMS["event"].index("203.0.113.70") + 9]
    flows, reader = read(half + FORMS["event"])
    assert flows is None
    assert reader.lines.garbage == 1


def test_other_lines_of_a_log_are_told_from_garbage() -> None:
    """Warnings of loss, other programs, remarks of journald and conntrack."""
    syslog = "May 28 20:26:40 gw "
    reader = Reader(recognised(f"{syslog}conntrack[7]: {FORMS['event, no time']}"), Lines())
    reader.read(
        "".join(
            f"{line}\n"
            for line in (
                f"{syslog}conntrack[7]: {FORMS['event, no time']}",
                f"{syslog}conntrack[7]: WARNING: We have hit ENOBUFS! We are losing events.",
                f"{syslog}conntrack[7]: This message means that the current netlink socket buffer is low.",
                f"{syslog}kernel: nf_conntrack: nf_conntrack: table full, dropping packet",
                f"{syslog}systemd-journald[1]: Suppressed 812 messages from nat.service",
                f"{syslog}sshd[99]: Accepted publickey for root from 10.64.0.2",
                "-- Boot 0123456789abcdef0123456789abcdef --",
                "-- Journal begins at Thu 2026-05-28 20:26:40 UTC. --",
                "what",
            )
        ).encode()
    )
    lines = reader.lines
    assert (lines.events, lines.losses, lines.foreign, lines.garbage) == (1, 3, 1, 1)


def recognised(line: str) -> LineForm:
    """The form of a file with this line."""
    form = recognise(f"{line}\n".encode())
    assert form is not None
    return form.line


USUAL = [
    FORMS["event"],
    FORMS["event"].replace("    [NEW]", " [UPDATE]"),
    FORMS["event"].replace("    [NEW]", "[DESTROY]"),
    FORMS["listed"],
    FORMS["listed, all"],
    FORMS["unknown"],
    SIX,
]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(USUAL), min_size=1, max_size=4), st.integers(0, 45), st.sampled_from("0 [].a\t")
)
def test_the_quick_way_says_what_the_pattern_says(lines: list[str], place: int, character: str) -> None:
    """Heads that NumPy reads are those of the pattern, also where a character is another."""
    bent = lines[0][:place] + character + lines[0][place + 1 :]
    block = Block("".join(f"{line}\n" for line in [bent, *lines[1:]]).encode())
    quick = reader_module._usual_heads(block)
    if quick is None:
        return
    matches = [PLAIN.head.match(line) for line in block.lines(np.arange(len(block.ends)))]
    for index, match in enumerate(matches):
        if match is not None:
            assert quick.protocol[index] == int(match[4])
            assert quick.event[index] == reader_module._EVENTS[match[3] or b""]
            assert quick.time[index] == pytest.approx(float(match[2] or "nan"), nan_ok=True, abs=1e-5)


def test_the_quick_way_is_taken() -> None:
    """What conntrack prints today needs no pattern."""
    for lines in (USUAL[:3], USUAL[3:4]):
        assert reader_module._usual_heads(Block("".join(f"{line}\n" for line in lines).encode())) is not None
