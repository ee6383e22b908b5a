# SPDX-License-Identifier: Apache-2.0
"""Offsets from BTF: the running kernel's, and those of files that are put together here."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from detector.base.errors import HostError
from detector.kernel.btf import VMLINUX, Btf, MissingField, read
from detector.kernel.source import offsets

needs_btf = pytest.mark.skipif(not VMLINUX.exists(), reason="the kernel has no BTF")

INT, PTR, ARRAY, STRUCT, UNION, TYPEDEF, CONST = 1, 2, 3, 4, 5, 8, 10
FLAG = 1 << 31  # kind_flag: the members' offsets hold the size of a bitfield above 24 bits


class Writer:
    """Puts a BTF file together, as ``Documentation/bpf/btf.rst`` describes it.

    Args:
        base: what this file continues, as a module's does with that of ``vmlinux``.
    """

    def __init__(self, base: Writer | None = None) -> None:
        self._types = b""
        self._strings = b"\0" if base is None else b""
        self._string_base: int = 0 if base is None else base._string_end
        self._next: int = 1 if base is None else base._next

    @property
    def _string_end(self) -> int:
        return self._string_base + len(self._strings)

    def _name(self, text: str) -> int:
        if not text:
            return 0
        at = self._string_end
        self._strings += text.encode() + b"\0"
        return at

    def add(self, kind: int, name: str, size_or_type: int, tail: bytes = b"", count: int = 0) -> int:
        """A type; returns its number."""
        self._types += struct.pack("<III", self._name(name), kind << 24 | count, size_or_type) + tail
        self._next += 1
        return self._next - 1

    def integer(self, name: str, size: int) -> int:
        """An integer."""
        return self.add(INT, name, size, struct.pack("<I", size * 8))

    def array(self, element: int, length: int) -> int:
        """An array."""
        return self.add(ARRAY, "", 0, struct.pack("<III", element, element, length))

    def composite(
        self, kind: int, name: str, size: int, members: list[tuple[str, int, int]], bitfields: bool = False
    ) -> int:
        """A struct or union of members (name, type, offset in bits)."""
        tail = b"".join(struct.pack("<III", self._name(text), type_id, at) for text, type_id, at in members)
        number = self.add(kind, name, size, tail, len(members))
        if bitfields:
            info = len(self._types) - len(tail) - 8
            (word,) = struct.unpack_from("<I", self._types, info)
            self._types = self._types[:info] + struct.pack("<I", word | FLAG) + self._types[info + 4 :]
        return number

    def bytes(self) -> bytes:
        """The file."""
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self._types), len(self._types), len(self._strings)
        )
        return header + self._types + self._strings


def _pair() -> tuple[Writer, Writer]:
    """A base and a module over it: typedefs, qualifiers, arrays, anonymous members and bitfields."""
    base = Writer()
    word, byte = base.integer("u32", 4), base.integer("u8", 1)
    pointer = base.add(PTR, "", 0)
    name = base.array(byte, 16)
    flag_bits = [("low", byte, 3 << 24 | 0), ("high", byte, 5 << 24 | 3), ("after", word, 32)]
    flags = base.composite(STRUCT, "flags", 8, flag_bits, bitfields=True)
    inner = base.composite(STRUCT, "", 8, [("first", word, 0), ("second", word, 32)])
    either = base.composite(UNION, "", 8, [("whole", pointer, 0), ("", inner, 0)])
    node = base.composite(STRUCT, "node", 40, [("name", name, 0), ("", either, 128), ("flags", flags, 192)])
    node_t = base.add(TYPEDEF, "node_t", base.add(CONST, "", node))
    base.composite(STRUCT, "shadowed", 4, [("here", word, 0)])
    module = Writer(base)
    nodes = module.array(node_t, 2)
    module.composite(STRUCT, "entry", 96, [("status", word, 32), ("nodes", nodes, 64), ("tail", nodes, 704)])
    module.composite(STRUCT, "nothing", 0, [])
    return base, module


@pytest.fixture
def module() -> Btf:
    """Split BTF of a module."""
    base, over = _pair()
    return Btf(over.bytes(), Btf(base.bytes()))


@pytest.mark.parametrize(
    ("name", "path", "offset"),
    [
        ("node", "name", 0),
        ("node", "whole", 16),  # in an anonymous union
        ("node", "first", 16),  # in an anonymous struct in it
        ("node", "second", 20),
        ("node", "flags.after", 28),
        ("flags", "high", 0),  # a bitfield: the byte that it begins in
        ("entry", "status", 4),  # the module's own struct, over types of the base
        ("entry", "nodes.second", 28),  # an array of a typedef of a const struct of the base
        ("entry", "tail.flags.after", 116),
    ],
)
def test_a_field_lies_where_the_file_says(module: Btf, name: str, path: str, offset: int) -> None:
    """Anonymous members, typedefs, qualifiers, arrays and bitfields are walked, in split BTF too."""
    assert module.offset(name, path) == offset
    assert module.has(name, path)


def test_sizes_are_those_of_the_structs(module: Btf) -> None:
    """A struct's own size, and that of a member's struct or of the elements of an array of them."""
    assert (module.size("node"), module.size("entry")) == (40, 96)
    assert (module.size("entry", "nodes"), module.size("entry", "nodes.flags")) == (40, 8)


@pytest.mark.parametrize(
    ("name", "path"),
    [("node", "absent"), ("absent", "field"), ("entry", "nodes.absent"), ("entry", "status.below"),
     ("nothing", "field"), ("nod", "name"), ("u32", "x")],
)  # fmt: skip
def test_a_missing_field_is_named(module: Btf, name: str, path: str) -> None:
    """What is not there is an error that says which field, and what to do."""
    with pytest.raises(MissingField, match=f"{name}.{path}") as caught:
        module.offset(name, path)
    assert caught.value.hint
    assert not module.has(name, path)
    with pytest.raises(MissingField, match=f"{name}.{path}"):
        module.size(name, path)


def test_the_base_alone_does_not_know_the_module() -> None:
    """Only split BTF has the module's structs, and a struct of the base is found through it."""
    base, over = _pair()
    assert not Btf(base.bytes()).has("entry", "status")
    assert Btf(over.bytes(), Btf(base.bytes())).has("shadowed", "here")


@pytest.mark.parametrize("text", [b"", b"\x9f", b"\x9f\xeb", bytes(24), b"\xeb\x9f" + bytes(30), b"ELF" * 9])
def test_what_is_no_btf_is_an_error(text: bytes) -> None:
    """Garbage, an empty file and the other byte order are errors for people, which say what is needed."""
    with pytest.raises(HostError, match="BTF"):
        Btf(text)


def _ask(data: bytes, base: Btf | None) -> None:
    types = Btf(data, base)
    types.offset("entry" if base else "node", "nodes.second" if base else "flags.after")
    types.size("entry" if base else "node")


def test_damaged_btf_is_an_error_and_never_a_crash() -> None:
    """Files cut short or with a byte changed give an offset or a HostError, nothing else, and end."""
    base, over = _pair()
    drawn = random.Random(5)  # noqa: S311
    refused = 0
    for whole, under in ((base.bytes(), None), (over.bytes(), Btf(base.bytes()))):
        damaged = [whole[:length] for length in range(len(whole))]
        for _ in range(2000):
            at, value = drawn.randrange(len(whole)), drawn.randrange(256)
            damaged.append(whole[:at] + bytes([value]) + whole[at + 1 :])
        for data in damaged:
            try:
                _ask(data, under)
            except HostError:
                refused += 1
    assert refused > 500


def test_no_btf_at_all_is_an_error_that_names_what_is_missing(tmp_path: Path) -> None:
    """Without the kernel's or a module's file the error says whose BTF is missing."""
    with pytest.raises(HostError, match="no BTF for itself"):
        read(folder=tmp_path)
    (tmp_path / VMLINUX.name).write_bytes(_pair()[0].bytes())
    with pytest.raises(HostError, match="no BTF for nf_conntrack") as caught:
        read("nf_conntrack", tmp_path)
    assert "modprobe nf_conntrack" in caught.value.hint


@needs_btf
def test_offsets_agree_with_bpftool() -> None:
    """Every named member of the structs that the program reads lies where bpftool says."""
    if shutil.which("bpftool") is None:
        pytest.skip("bpftool is not installed")
    command = ["bpftool", "btf", "dump", "file", str(VMLINUX), "format", "raw"]
    types, wanted, compared = read(), {"sk_buff", "nf_conn", "nf_conntrack_tuple", "net", "ns_common"}, 0
    name = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("["):
                parts = line.split("'")
                name = parts[1] if " STRUCT '" in line and "vlen=0" not in line else ""
            elif name in wanted and "bits_offset=" in line and "(anon)" not in line:
                member, bits = line.split("'")[1], int(line.split("bits_offset=")[1].split()[0])
                assert types.offset(name, member) == bits // 8, f"{name}.{member}"
                compared += 1
    assert compared > 60


@needs_btf
def test_the_macros_are_those_of_a_kernel() -> None:
    """What must hold on every kernel: an entry's part that is read is small and has both tuples in it."""
    macros = offsets(read()) if read().has("nf_conn", "status") else offsets(read("nf_conntrack"))
    assert macros["EP_TUPLEHASH_SIZE"] == 56
    assert macros["EP_CT_STATUS"] == macros["EP_CT_TUPLEHASH"] - 16 + 2 * 56
    assert (macros["EP_TUPLE_SRC"], macros["EP_TUPLE_SRC_PORT"], macros["EP_TUPLE_L3NUM"]) == (0, 16, 18)
    assert (macros["EP_TUPLE_DST"], macros["EP_TUPLE_PROTONUM"]) == (20, 38)
    assert macros["EP_CT_FIRST"] % 8 == 0
    assert macros["EP_CT_SPAN"] <= 192
