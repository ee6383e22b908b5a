# SPDX-License-Identifier: Apache-2.0
"""The C source and the macros that it is compiled with: struct offsets, table sizes, the secret."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from detector.kernel.btf import Btf

# Macro -> (struct, field). Bytes from the start of the struct.
_FIELDS = {
    "EP_SKB_NFCT": ("sk_buff", "_nfct"),
    "EP_SKB_IIF": ("sk_buff", "skb_iif"),
    "EP_SKB_DEV": ("sk_buff", "dev"),
    "EP_SKB_HEAD": ("sk_buff", "head"),
    "EP_SKB_NETWORK_HEADER": ("sk_buff", "network_header"),
    "EP_DEV_IFINDEX": ("net_device", "ifindex"),
    "EP_TUPLE_SRC": ("nf_conntrack_tuple", "src.u3"),
    "EP_TUPLE_SRC_PORT": ("nf_conntrack_tuple", "src.u"),
    "EP_TUPLE_L3NUM": ("nf_conntrack_tuple", "src.l3num"),
    "EP_TUPLE_DST": ("nf_conntrack_tuple", "dst.u3"),
    "EP_TUPLE_DST_PORT": ("nf_conntrack_tuple", "dst.u"),
    "EP_TUPLE_PROTONUM": ("nf_conntrack_tuple", "dst.protonum"),
    "EP_CT_TUPLEHASH": ("nf_conn", "tuplehash.tuple"),
    "EP_CT_STATUS": ("nf_conn", "status"),
    "EP_CT_NET": ("nf_conn", "ct_net.net"),
    "EP_NET_INUM": ("net", "ns.inum"),
    "EP_STATE_PF": ("nf_hook_state", "pf"),
    "EP_STATE_OUT": ("nf_hook_state", "out"),
}
# A struct of nothing but u64, in every kernel's BTF; as part of the interface to user space it stays so.
_WORDS = "rtnl_link_stats64"
_CAST = "bpf_rdonly_cast"


def folder() -> Path:
    """Where the C files are: inside an installed package, or beside it in a clone."""
    package = Path(__file__).parent.parent
    inside = package / "bpf"
    return inside if inside.is_dir() else package.parent / "bpf"


def offsets(btf: Btf) -> dict[str, int]:
    """Macros for where the program finds each field in kernel memory.

    Raises:
        MissingField: the kernel has no such field.
    """
    macros = {name: btf.offset(*field) for name, field in _FIELDS.items()}
    macros["EP_TUPLEHASH_SIZE"] = btf.size("nf_conntrack_tuple_hash")
    # A kernel without CONFIG_NF_CONNTRACK_ZONES has no zone: then it is 0 for every flow.
    if btf.has("nf_conn", "zone.id"):
        macros["EP_CT_ZONE"] = btf.offset("nf_conn", "zone.id")
    ends = {
        macros["EP_CT_TUPLEHASH"] + 2 * macros["EP_TUPLEHASH_SIZE"],
        macros["EP_CT_STATUS"] + 8,
        macros["EP_CT_NET"] + 8,
    }
    first = min(value for name, value in macros.items() if name.startswith("EP_CT_")) & ~7
    return macros | {"EP_CT_FIRST": first, "EP_CT_SPAN": (max(ends) + 7 & ~7) - first}


def direct_reads(kernel: Btf, span: int) -> dict[str, int]:
    """Macros for reading memory without a copy; none where the kernel (before 6.2) cannot.

    Args:
        kernel: its own BTF, not that of a module: the numbers that the verifier wants are from there.
        span: bytes.
    """
    cast, words = kernel.function(_CAST), kernel.struct(_WORDS)
    if not cast or not words or kernel.size(_WORDS) < span:
        return {}
    return {"EP_RDONLY_CAST": cast, "EP_WORDS": words}


def draw_secret() -> dict[str, int]:
    """The keys of memories and hash tables: new at each load, in the program's text alone."""
    return {f"EP_SECRET_{number}": secrets.randbits(64) for number in range(4)}


def flags(macros: Mapping[str, int]) -> list[str]:
    """The compiler's arguments for these macros."""
    return [f"-D{name}={value}{'ULL' if value >> 31 else ''}" for name, value in macros.items()]


def text(name: str = "exitprint.c") -> str:
    """One translation unit: BCC rewrites map accesses in the main file only, so ours are put into it."""

    def include(match: re.Match[str]) -> str:
        return (folder() / match[1]).read_text()

    source = (folder() / name).read_text()
    return re.sub(r'^#include "(\w+\.h)"$', include, source, flags=re.MULTILINE).replace("#pragma once", "")
