# SPDX-License-Identifier: Apache-2.0
"""Every form that flows are kept in is known for what it is, and says the same of the same flow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from time import process_time

import numpy as np
import pytest

from detector.base.family import pack
from detector.conntrack.forms import recognise
from detector.conntrack.reader import Flows, Lines, Reader
from detector.conntrack.unusable import named
from tests.unit.conntrack.listings import Flow, entry, event

PEER, SITE, EXIT = ip_address("10.64.0.7"), ip_address("198.51.100.9"), ip_address("203.0.113.70")
START = 1_779_990_000.0
MADE = [Flow(PEER, SITE, 2000 + number, EXIT, START + 7 * number + 0.25) for number in range(5)]
BARE = [event(flow).split("\t", 1)[1].strip() for flow in MADE]


def at(flow: Flow, form: str) -> str:
    """The time of a flow as a log writes it."""
    return datetime.fromtimestamp(flow.time, UTC).strftime(form)


def prefixed(form: str) -> list[str]:
    """Each flow's line behind a prefix with its time."""
    return [at(flow, form) + bare for flow, bare in zip(MADE, BARE, strict=True)]


def boot(flow: Flow) -> str:
    """Seconds since boot."""
    return f"{flow.time - START + 1000:.6f}"


PREFIXES = {
    "nothing": [event(flow) for flow in MADE],
    "classic": prefixed("%b %e %H:%M:%S gw conntrack[93]: "),
    "classic, no program": prefixed("%b %e %H:%M:%S gw "),
    "classic, precise": prefixed("%b %e %H:%M:%S.%f gw conntrack[93]: "),
    "classic, with a facility": prefixed("%a %b %e %H:%M:%S %Y daemon.info conntrack[93]: "),
    "classic, with a priority": prefixed("<30>%b %e %H:%M:%S gw conntrack: "),
    "iso": prefixed("%Y-%m-%dT%H:%M:%S.%f+00:00 gw conntrack[93]: "),
    "iso, Z": prefixed("%Y-%m-%dT%H:%M:%SZ gw conntrack[93]: "),
    "iso, short zone": prefixed("%Y-%m-%dT%H:%M:%S+0000 gw conntrack[93]: "),
    "iso, alone": prefixed("%Y-%m-%d %H:%M:%S "),
    "iso, comma": prefixed("%Y-%m-%d %H:%M:%S,250 "),
    "iso, bracket": prefixed("[%Y-%m-%d %H:%M:%S] "),
    "slashes": prefixed("%Y/%m/%d %H:%M:%S gw conntrack: "),
    "short-full": prefixed("%a %Y-%m-%d %H:%M:%S UTC gw conntrack[93]: "),
    "rfc 5424": prefixed("<30>1 %Y-%m-%dT%H:%M:%S.%fZ gw conntrack 93 - - "),
    "rfc 5424, structured": prefixed(
        '<30>1 %Y-%m-%dT%H:%M:%S.%fZ gw conntrack 93 ID4 [a@1 b="c"][d e="\\]"] \ufeff'
    ),
    "rfc 5424, own stamp": [
        at(flow, "1 %Y-%m-%dT%H:%M:%SZ gw conntrack 93 - - ") + event(flow) for flow in MADE
    ],
    "short-unix": [
        f"{flow.time:.6f} gw conntrack[93]: {bare}" for flow, bare in zip(MADE, BARE, strict=True)
    ],
    "date +%s": [f"{flow.time:.0f} {bare}" for flow, bare in zip(MADE, BARE, strict=True)],
    "short-monotonic": [
        f"[ {boot(flow)}] gw conntrack[93]: {bare}" for flow, bare in zip(MADE, BARE, strict=True)
    ],
    "short-delta": [
        f"[ {boot(flow)} <    7.000000 >] gw conntrack[93]: {bare}"
        for flow, bare in zip(MADE, BARE, strict=True)
    ],
    "time of day": prefixed("%H:%M:%S "),
    "time of day, host": prefixed("%H:%M:%S.%f gw conntrack[93]: "),
    "grep": [f"nat.log.{n}.gz:{event(flow)}" for n, flow in enumerate(MADE)],
    "grep -n": [f"/var/log/nat.log:{n}:{event(flow)}" for n, flow in enumerate(MADE)],
    "grep, syslog": [f"nat.log:{line}" for line in prefixed("%b %e %H:%M:%S gw conntrack[93]: ")],
    "docker compose": [f"relay-1  | {event(flow)}" for flow in MADE],
    "old conntrack": [event(flow).replace(".250000]", ".250000]       ") for flow in MADE],
    "vyos": [
        at(flow, "%b %e %H:%M:%S vyos vyos-conntrack-logger[5]: ")
        + bare.replace("[NEW] ", f"[NEW]     {1411737613 + n} ")
        for n, (flow, bare) in enumerate(zip(MADE, BARE, strict=True))
    ],
}


def xml(flow: Flow) -> str:
    """As `conntrack -E -o xml,timestamp` prints it."""
    when = at(flow, "<hour>%H</hour><min>%M</min><sec>%S</sec><wday>5</wday><day>%d</day><month>%m</month>")
    half = (
        '<meta direction="{way}"><layer3 protonum="2" protoname="ipv4"><src>{a}</src><dst>{b}</dst></layer3>'
        '<layer4 protonum="17" protoname="udp"><sport>{p}</sport><dport>{q}</dport></layer4></meta>'
    )
    there = half.format(way="original", a=flow.peer, b=flow.destination, p=flow.port, q=443)
    back = half.format(way="reply", a=flow.destination, b=flow.exit, p=443, q=flow.port)
    return (
        f'<flow type="new">{there}{back}<meta direction="independent"><id>4</id><unreplied/></meta>'
        f"<when>{when}<year>2026</year></when></flow>"
    )


def ulogd(flow: Flow) -> dict[str, object]:
    """The keys of ulogd2's NFCT."""
    return {
        "timestamp": at(flow, "%Y-%m-%dT%H:%M:%S.%f+0000"),
        "ct.event": 1,
        "orig.ip.protocol": 17,
        "orig.ip.saddr.str": str(flow.peer),
        "orig.ip.daddr.str": str(flow.destination),
        "orig.l4.sport": flow.port,
        "orig.l4.dport": 443,
        "reply.ip.saddr.str": str(flow.destination),
        "reply.ip.daddr.str": str(flow.exit),
        "reply.l4.sport": 443,
        "reply.l4.dport": flow.port,
    }


def printflow(flow: Flow) -> str:
    """As ulogd2's PRINTFLOW writes it."""
    return (
        f"[NEW] ORIG: SRC={flow.peer} DST={flow.destination} PROTO=UDP SPT={flow.port} DPT=443 "
        f"PKTS=0 BYTES=0 , REPLY: SRC={flow.destination} DST={flow.exit} PROTO=UDP SPT=443 "
        f"DPT={flow.port} PKTS=0 BYTES=0 "
    )


def journal(flow: Flow, message: object) -> dict[str, object]:
    """As `journalctl -o json` writes it."""
    return {
        "__REALTIME_TIMESTAMP": f"{flow.time * 1e6:.0f}",
        "SYSLOG_IDENTIFIER": "conntrack",
        "MESSAGE": message,
    }


def lines_of(make: Callable[[Flow], str]) -> str:
    """A line a flow."""
    return "".join(make(flow) + "\n" for flow in MADE)


def bare(flow: Flow) -> str:
    """The line without a time."""
    return BARE[MADE.index(flow)]


WHOLE = {
    "xml": '<?xml version="1.0" encoding="utf-8"?>\n<conntrack>\n' + lines_of(xml) + "</conntrack>\n",
    "xml without line feeds": "<conntrack>" + lines_of(xml).replace("\n", "") + "</conntrack>\n",
    "ulogd2 JSON": lines_of(lambda flow: json.dumps(ulogd(flow))),
    "ulogd2 GPRINT": lines_of(lambda flow: ",".join(f"{key}={value}" for key, value in ulogd(flow).items())),
    "ulogd2 LOGEMU": lines_of(lambda flow: at(flow, "%b %e %H:%M:%S gw ") + printflow(flow)),
    "ulogd2 through journald": lines_of(lambda flow: json.dumps(journal(flow, printflow(flow)))),
    "journald JSON": lines_of(lambda flow: json.dumps(journal(flow, bare(flow)))),
    "journald JSON, bytes": lines_of(lambda flow: json.dumps(journal(flow, list(bare(flow).encode())))),
    "journald JSON, pretty": lines_of(lambda flow: json.dumps(journal(flow, bare(flow)), indent="\t")),
    "journald JSON, array": "[" + ",\n".join(json.dumps(journal(flow, bare(flow))) for flow in MADE) + "]\n",
    "journald JSON, sse": lines_of(lambda flow: f"data: {json.dumps(journal(flow, bare(flow)))}\n"),
    "journald export": lines_of(
        lambda flow: "".join(f"{key}={value}\n" for key, value in journal(flow, bare(flow)).items())
    ),
    "docker": lines_of(
        lambda flow: json.dumps({"log": bare(flow) + "\n", "time": at(flow, "%Y-%m-%dT%H:%M:%S.%f123Z")})
    ),
    "nested": lines_of(
        lambda flow: json.dumps(
            {"@timestamp": at(flow, "%Y-%m-%dT%H:%M:%S.%fZ"), "event": {"original": bare(flow)}}
        )
    ),
}


def read(content: str) -> tuple[Flows, Lines, str]:
    """The flows of a file, what became of its lines, and what its form is called."""
    text = content.encode()
    form = recognise(text)
    assert form is not None
    lines = Lines()
    reader = Reader(form.line, lines)
    parts: Iterator[bytes] = form.apply(iter([text]))
    flows = [flows for part in parts if (flows := reader.read(part)) is not None]
    return Flows.joined(flows), lines, ", ".join(form.names)


def is_right(flows: Flows, lines: Lines) -> None:
    """The five flows came out, each once, with their addresses, and seven seconds apart."""
    assert lines.garbage == 0
    assert (lines.events, len(flows)) == (5, 5)
    for column, address in ((flows.source, PEER), (flows.destination, SITE), (flows.exit, EXIT)):
        assert {one.tobytes() for one in column} == {pack(address)}
    assert np.unique(flows.port).size == 5
    assert np.diff(flows.time).tolist() == pytest.approx([7.0] * 4)


@pytest.mark.parametrize("name", PREFIXES)
def test_every_beginning_is_read_with_its_time(name: str) -> None:
    """Whatever program kept the line, the flow and the time of it come out."""
    is_right(*read("".join(f"{line}\n" for line in PREFIXES[name]))[:2])


@pytest.mark.parametrize("name", WHOLE)
def test_other_forms_are_read_with_their_times(name: str) -> None:
    """What is not written in conntrack's lines says the same of the same flows."""
    flows, lines, said = read(WHOLE[name])
    is_right(flows, lines)
    assert said


def test_a_saved_table_is_read() -> None:
    """`conntrack -o save`, which has no times, with a flow of ICMP and of IPv6 in it."""
    content = "".join(
        f"-A -t 30 -u SEEN_REPLY -s {f.peer} -d {f.destination} -r {f.destination} -q {f.exit} -p udp "
        f"--sport {f.port} --dport 443 --reply-port-src 443 --reply-port-dst {f.port}\n"
        for f in MADE
    )
    content += (
        "-A -s 10.64.0.7 -d 198.51.100.1 -r 198.51.100.1 -q 203.0.113.70 "
        "-p icmp --icmp-type 8 --icmp-code 0 --icmp-id 9\n"
    )
    content += (
        "-A -s fd00::2 -d 2001:db8::1 -r 2001:db8::1 -q 2001:db8:7::1 -p 6 "
        " --sport 5 --dport 6 --reply-port-src 6 --reply-port-dst 5\n"
    )
    flows, lines, _ = read(content)
    assert (lines.entries, lines.garbage) == (7, 0)
    assert flows.four.tolist() == [True] * 6 + [False]


def test_the_start_of_a_listed_flow_is_its_time() -> None:
    """`conntrack -L -o ktimestamp` and delta-time tell when each flow began."""
    dates = [f"[start={at(flow, '%a %b %e %H:%M:%S %Y')}]" for flow in MADE]
    stamped, *_ = read("".join(f"{entry(flow)} {date}\n" for flow, date in zip(MADE, dates, strict=True)))
    assert np.diff(stamped.time).tolist() == [7.0] * 4
    aged, *_ = read("".join(f"{entry(flow)} delta-time={70 - 7 * n}\n" for n, flow in enumerate(MADE)))
    assert np.diff(aged.time).tolist() == [7.0] * 4


def test_an_end_tells_when_the_flow_began() -> None:
    """A [DESTROY] with delta-time is of a flow that began so much earlier."""
    ends = [
        event(flow).replace("[NEW]", "[DESTROY]") + f" [ASSURED] delta-time={100 + n}"
        for n, flow in enumerate(MADE)
    ]
    flows, lines, _ = read("".join(f"{line}\n" for line in ends))
    assert lines.destroys == 5
    assert flows.ends.all()
    assert np.diff(flows.time).tolist() == pytest.approx([6.0] * 4)


def test_old_stamps_have_microseconds_without_zeros() -> None:
    """Conntrack before 1.4: `.52    ` is 52 microseconds."""
    flows, *_ = read("".join(f"{line}\n" for line in (
        event(MADE[0]).replace(".250000]", ".999999]"), event(MADE[1]).replace(".250000]", ".52    ]")
    )))  # fmt: skip
    assert flows.time.tolist() == [START + 0.999999, START + 7.000052]


@pytest.mark.parametrize(
    ("form", "texts"),
    [
        ("%b %e %H:%M:%S gw conntrack: ", ["Dec 31 23:59:58", "Jan  1 00:00:05"]),
        ("%H:%M:%S ", ["23:59:58", "00:00:05"]),
    ],
)
def test_a_log_goes_on_over_midnight(form: str, texts: list[str]) -> None:
    """A new day or year is seven seconds later, not a day or a year earlier; the same the other way round."""
    lines = [
        f"{text}{' gw conntrack: ' if 'conntrack' in form else ' '}{bare}\n"
        for text, bare in zip(texts, BARE, strict=False)
    ]
    assert np.diff(read("".join(lines))[0].time).tolist() == [7.0]
    assert np.diff(read("".join(reversed(lines)))[0].time).tolist() == [-7.0]


def test_a_date_is_no_protocol() -> None:
    """A date such as Jul 16 before a line is neither protocol 16 nor makes a beginning of an end."""
    lines = [
        f"Jul 16 10:00:0{n} gw conntrack[9]: {line}\n"
        for n, line in enumerate(
            (BARE[0], BARE[0].replace("[NEW]", "[UPDATE]"), BARE[0].replace("[NEW]", "[DESTROY]"))
        )
    ]
    flows, counts, _ = read("".join(lines))
    assert (counts.events, counts.updates, counts.destroys) == (1, 1, 1)
    assert (flows.port >> np.uint64(32)).tolist() == [17, 17]


def test_forms_may_change_within_a_file() -> None:
    """After an update the log is written in another way: both parts are read."""
    mixed = [*prefixed("%b %e %H:%M:%S gw conntrack[9]: ")[:3], *PREFIXES["nothing"][3:]]
    flows, lines, _ = read("".join(f"{line}\n" for line in mixed))
    assert (len(flows), lines.garbage) == (5, 0)


def test_an_unknown_beginning_costs_the_time_alone() -> None:
    """A prefix that nobody knows is passed over, and the form says so."""
    flows, lines, said = read("".join(f"#{n}# relay=gw7 >> {line}\n" for n, line in enumerate(BARE)))
    assert (len(flows), lines.garbage) == (5, 0)
    assert np.isnan(flows.time).all()
    assert "not known" in said


HOSTILE = {
    "blanks": b"May 28 20:26:40 " + b" " * 60_000 + b"src=1\n",
    "words": b"2026-05-28 20:26:40 " + b"a " * 30_000 + b"src=1\n",
    "empty lines": b"\n" * 900_000,
    "tags": b"<flow><meta " * 80_000 + b"\n",
    "open tags": (b"<flow>" * 10_000 + b"\n") * 15,
    "options": b"-A x " + b"-s a " * 12_000 + b"\n",
    "packets": b"IN= OUT= " * 7_000 + b"\n",
    "objects": b'{"a": {"b": [\n' + b"}\n" * 100_000,
    "nested": b"[" * 60_000 + b'{"a' + b"\n",
    "digits": b"[" + b"1" * 60_000 + b" src=\n",
    "sources": b"tcp 6 " + b" src=" * 12_000 + b"\n",
    "flows": b"x ORIG: SRC=a DST=b PROTO=1 " * 2_000 + b"\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_takes_long(name: str) -> None:
    """What is written to make patterns try again and again is read or refused in the time of other text."""
    begun = process_time()
    form = recognise(HOSTILE[name])
    if form is None:
        named(HOSTILE[name])
    else:
        reader = Reader(form.line, Lines())
        for part in form.apply(iter([HOSTILE[name]])):
            reader.read(part)
    assert process_time() - begun < 5
