# SPDX-License-Identifier: Apache-2.0
"""The program never touches traffic: by what its instructions can do, and by the packets that arrive."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from ipaddress import ip_address
from typing import NamedTuple

import pytest

from detector.kernel.btf import read
from detector.kernel.loader import HOOKS
from detector.lab.namespaces import entered
from tests.system.kernel.program import HOOK, SMALL, attached
from tests.system.kernel.topology import LEAVE, SITES4, SITES6, Flow, Relay, built, peer, site

pytestmark = pytest.mark.root

# Helpers that only read. What is written is the stack and, as the verifier checks, our maps.
HELPERS = {1: "map_lookup_elem", 8: "get_smp_processor_id", 113: "probe_read_kernel"}
CAST = "bpf_rdonly_cast"  # gives a pointer a type
FUNCTIONS = {"netfilter": "on_packet", "kprobe": "on_confirm"}
RESULTS = {"netfilter": 1, "kprobe": 0}  # NF_ACCEPT; a kprobe's 0 is "nothing for perf to record"

_RCVBUFFORCE = 33
_KERNEL_FUNCTION = 2
_CALL, _EXIT, _JUMP_CLASSES, _WIDE = 0x85, 0x95, (0x05, 0x06), 0x18
_RESULT_IS = (0xB7, 0xB4)  # r0 = imm, as 64 and as 32 bits

DUMP = """
import json, sys
from detector.config.model import Tables
from detector.kernel import source
from detector.kernel.loader import compiled, conntrack_btf
from detector.kernel.tables import macros
types = conntrack_btf()
flags = source.offsets(types) | source.draw_secret() | macros(Tables(**json.loads(sys.argv[1])))
program = compiled(sys.argv[2], flags | {"EP_NAMESPACE": 1}, types.kernel)
print(program.dump_func(sys.argv[3].encode()).hex())
"""


class Instruction(NamedTuple):
    """One of eight bytes."""

    code: int
    registers: int
    offset: int
    immediate: int


@pytest.fixture(scope="module", params=[hook for hook in HOOKS if HOOK in (hook, "auto")])
def hook(request: pytest.FixtureRequest) -> str:
    """Each hook that is tested here."""
    return str(request.param)


@pytest.fixture(scope="module")
def code(hook: str) -> list[Instruction]:
    """The instructions of a hook's function, as they are given to the kernel."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", DUMP, json.dumps(asdict(SMALL)), hook, FUNCTIONS[hook]],
        capture_output=True,
        text=True,
        check=True,
    )
    return [Instruction(*words) for words in struct.iter_unpack("<BBhi", bytes.fromhex(done.stdout))]


def _targets(code: list[Instruction]) -> Iterator[int]:
    """Where jumps go."""
    for index, one in enumerate(code):
        if one.code & 7 in _JUMP_CLASSES and one.code not in {_CALL, _EXIT}:
            yield index + 1 + (one.immediate if one.code == 0x06 else one.offset)


def test_only_what_reads_is_called(hook: str, code: list[Instruction]) -> None:
    """No helper is called but those of the list, no kernel function but the cast, and no subprogram."""
    calls = [(one.registers >> 4, one.immediate) for one in code if one.code == _CALL]
    allowed = {(0, helper) for helper in HELPERS}
    if hook == "netfilter":
        allowed.add((_KERNEL_FUNCTION, read().function(CAST)))
    assert set(calls) <= allowed
    assert len(calls) > 5


def test_every_way_out_accepts(hook: str, code: list[Instruction]) -> None:
    """Before each exit the result is set to the one constant, and no jump goes past that."""
    exits = [index for index, one in enumerate(code) if one.code == _EXIT]
    assert exits
    assert not set(exits) & set(_targets(code))
    for index in exits:
        setter = code[index - 1]
        assert setter.code in _RESULT_IS
        assert (setter.registers & 15, setter.immediate) == (0, RESULTS[hook])


def _captured(relay: Relay, flows: list[Flow]) -> list[bytes]:
    """The packets to sites that arrive at the sink, from the IP header on."""
    with entered(relay.sink):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    with tap:
        tap.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 8 << 20)
        tap.bind(("up0", 3))
        relay.forget()
        relay.send(flows, times=3)
        tap.setblocking(False)
        packets = []
        while True:
            try:
                packets.append(tap.recv(2048))
            except BlockingIOError:
                break
    return [_without_number(packet) for packet in packets if _to_a_site(packet)]


def _without_number(packet: bytes) -> bytes:
    """An IPv4 packet without its identification, which the sender draws anew, and the checksum over it."""
    if packet[0] >> 4 == 6:
        return packet
    return packet[:4] + packet[6:10] + packet[12:]


def _to_a_site(packet: bytes) -> bool:
    version = packet[0] >> 4
    where = ip_address(packet[16:20] if version == 4 else packet[24:40])
    return where in (SITES4 if version == 4 else SITES6) and int(where) & 0xFFFF != 0xFFFE


def test_packets_arrive_the_same_with_and_without_the_program() -> None:
    """The same traffic gives the same packets, byte for byte and in the same order, and as many."""
    with built() as relay:
        relay.rules(
            f"{LEAVE} snat to 203.0.113.1-203.0.113.64",
            rules6=[f"{LEAVE} snat to 2001:db8:e::1-2001:db8:e::ff"],
        )
        flows = [
            Flow(peer(number, version), site(number, version), 20000 + number, protocol)
            for number in range(1, 21)
            for version in (4, 6)
            for protocol in ("udp", "icmp")
        ]
        relay.send([])  # neighbours are known from here on
        without = _captured(relay, flows)
        with attached(relay):
            beside = _captured(relay, flows)
    assert len(without) == 3 * len(flows)
    assert beside == without
