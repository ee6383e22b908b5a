# SPDX-License-Identifier: Apache-2.0
"""A reader of BTF, the kernel's own description of its types: where does a field lie in a struct?

Only what offsets need is read. The format is the kernel's ``Documentation/bpf/btf.rst``; a module's BTF is
*split*: its type numbers and string offsets continue those of ``vmlinux``.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from pathlib import Path

from detector.base.errors import HostError

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")

_LAST_KIND = 19
_DEPTH = 32  # of names and of anonymous members; what goes deeper goes round in a circle

_ARRAY, _STRUCT, _UNION, _FUNCTION = 3, 4, 5, 12
# Kinds that only name or qualify another type: typedef, volatile, const, restrict, type tag.
_TRANSPARENT = frozenset({8, 9, 10, 11, 18})
# Bytes that follow a type's twelve, by kind: (fixed, for each of its vlen entries).
_TAIL = {
    1: (4, 0),  # int
    _ARRAY: (12, 0),
    _STRUCT: (0, 12),
    _UNION: (0, 12),
    6: (0, 8),  # enum
    13: (0, 8),  # function prototype
    14: (4, 0),  # variable
    15: (0, 12),  # data section
    17: (4, 0),  # declaration tag
    19: (0, 12),  # 64-bit enum
}


def _unreadable() -> HostError:
    return HostError("the kernel's BTF cannot be read", "a kernel with CONFIG_DEBUG_INFO_BTF is needed")


class MissingField(HostError):
    """The running kernel's BTF does not have a field that the program reads."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"the running kernel's BTF has no field {field}",
            "report the kernel's version: its conntrack is of a shape that is not known yet",
        )


@dataclass(frozen=True, slots=True)
class _Type:
    name: int
    kind: int
    vlen: int
    bitfields: bool
    target: int  # the type pointed to, or the size of a struct
    tail: int  # where the entries start in the file


class Btf:
    """The types of ``vmlinux`` or, given a `base`, of one module.

    Raises:
        HostError: the bytes are not BTF of this machine's byte order.
    """

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        if len(data) < _HEADER.size or _HEADER.unpack_from(data)[0] != _MAGIC:
            raise _unreadable()
        _, _, _, header, type_off, type_len, string_off, string_len = _HEADER.unpack_from(data)
        if header + max(type_off + type_len, string_off + string_len) > len(data):
            raise _unreadable()
        self._base = base
        self._data = data
        self._first_id = base._next_id if base else 1
        self._first_string = base._next_string if base else 0
        self._next_string: int = self._first_string + string_len
        self._strings = data[header + string_off : header + string_off + string_len]
        self._offsets = _type_offsets(data, header + type_off, type_len)
        self._next_id: int = self._first_id + len(self._offsets)

    def offset(self, struct_name: str, path: str) -> int:
        """Byte offset of a field in a struct.

        Args:
            struct_name: the struct's name, such as ``nf_conn``.
            path: members separated by dots, ``tuplehash.tuple``; anonymous members are walked and a member
                that is an array stands for its first element.

        Raises:
            MissingField: there is no such struct or field.
        """
        type_id = self.struct(struct_name)
        total = 0
        for part in path.split("."):
            found = self._member(type_id, part) if type_id else None
            if found is None:
                raise MissingField(f"{struct_name}.{path}")
            bits, type_id = found
            total += bits // 8
        return total

    def has(self, struct_name: str, path: str) -> bool:
        """Is there such a field?"""
        try:
            self.offset(struct_name, path)
        except MissingField:
            return False
        return True

    def size(self, struct_name: str, path: str = "") -> int:
        """Bytes of a struct, or of one of its fields that is a struct or an array of structs.

        Raises:
            MissingField: there is no such struct or field.
        """
        type_id = self.struct(struct_name)
        for part in filter(None, path.split(".")):
            found = self._member(type_id, part) if type_id else None
            type_id = found[1] if found else 0
        if not type_id:
            raise MissingField(f"{struct_name}.{path}".rstrip("."))
        return self._type(self._strip(type_id)).target

    @property
    def kernel(self) -> Btf:
        """The types of ``vmlinux`` alone."""
        return self._base.kernel if self._base else self

    def struct(self, name: str) -> int:
        """Id of the struct that has members under this name, 0 for none."""
        return self._find(_STRUCT, name)

    def function(self, name: str) -> int:
        """Id of a function, 0 for none."""
        return self._find(_FUNCTION, name)

    def _find(self, kind: int, name: str) -> int:
        wanted = self._strings.find(b"\0" + name.encode() + b"\0") + 1
        if wanted:
            wanted += self._first_string
            for index, offset in enumerate(self._offsets):
                name_off, info, _ = _TYPE.unpack_from(self._data, offset)
                if name_off == wanted and info >> 24 & 0x1F == kind and (kind != _STRUCT or info & 0xFFFF):
                    return self._first_id + index
        return self._base._find(kind, name) if self._base else 0

    def _member(self, type_id: int, name: str, depth: int = 0) -> tuple[int, int] | None:
        """(offset in bits, type id) of a member, looking into anonymous members."""
        stripped = self._strip(type_id)
        parent, data = self._type(stripped), self._owner(stripped)._data
        if parent.kind not in (_STRUCT, _UNION):
            return None
        if depth > _DEPTH:
            raise _unreadable()
        for index in range(parent.vlen):
            name_off, member, bits = _MEMBER.unpack_from(data, parent.tail + _MEMBER.size * index)
            bits = bits & 0xFFFFFF if parent.bitfields else bits
            if self._string(name_off) == name:
                return bits, member
            if name_off == 0 and (inner := self._member(member, name, depth + 1)):
                return bits + inner[0], inner[1]
        return None

    def _strip(self, type_id: int) -> int:
        """The type behind typedefs, qualifiers and arrays."""
        for _ in range(_DEPTH):
            found = self._type(type_id)
            if found.kind in _TRANSPARENT:
                type_id = found.target
            elif found.kind == _ARRAY:
                (type_id,) = struct.unpack_from("<I", self._owner(type_id)._data, found.tail)
            else:
                return type_id
        raise _unreadable()

    def _owner(self, type_id: int) -> Btf:
        """Whose file describes the type: ours, or that of the base that split BTF continues."""
        owner = self
        while type_id < owner._first_id and owner._base:
            owner = owner._base
        return owner

    def _type(self, type_id: int) -> _Type:
        owner = self._owner(type_id)
        if type_id < owner._first_id:
            return _Type(0, 0, 0, False, 0, 0)  # void
        if type_id >= owner._next_id:
            raise _unreadable()
        offset = owner._offsets[type_id - owner._first_id]
        name, info, target = _TYPE.unpack_from(owner._data, offset)
        return _Type(name, info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31), target, offset + _TYPE.size)

    def _string(self, offset: int) -> str:
        owner = self
        while offset < owner._first_string and owner._base:
            owner = owner._base
        start = offset - owner._first_string
        end = owner._strings.find(b"\0", start)
        if end < 0:
            raise _unreadable()
        return owner._strings[start:end].decode(errors="replace")


def _type_offsets(data: bytes, start: int, length: int) -> array[int]:
    """Where each type begins in the file; each lies in it as a whole.

    Raises:
        HostError: one does not, or is of a kind that is not known.
    """
    offsets = array("I")
    position, end = start, start + length
    info_at = struct.Struct("<I").unpack_from
    while position + _TYPE.size <= end:
        offsets.append(position)
        (info,) = info_at(data, position + 4)
        kind = info >> 24 & 0x1F
        if kind > _LAST_KIND:  # so its length is not known
            raise _unreadable()
        fixed, each = _TAIL.get(kind, (0, 0))
        position += _TYPE.size + fixed + each * (info & 0xFFFF)
    if position != end:
        raise _unreadable()
    return offsets


def read(module: str | None = None, folder: Path = VMLINUX.parent) -> Btf:
    """The running kernel's BTF, or a module's over it.

    Raises:
        HostError: the kernel has no BTF.
    """
    try:
        base = Btf((folder / VMLINUX.name).read_bytes())
        return Btf((folder / module).read_bytes(), base) if module else base
    except FileNotFoundError as error:
        hint = "a kernel with CONFIG_DEBUG_INFO_BTF is needed"
        if module:
            hint = f"if the module is not loaded: modprobe {module}; otherwise {hint}"
        raise HostError(f"the kernel has no BTF for {module or 'itself'}", hint) from error
