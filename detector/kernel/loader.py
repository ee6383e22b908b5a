# SPDX-License-Identifier: Apache-2.0
"""The loader: compiles the eBPF program, attaches it, hands the descriptors over, and ends.

It runs as a child (``python -m detector.kernel.loader FD``), in the network namespace that is watched, and is
the only process that imports BCC. `load` is the parent's side. The memories of destinations and ports are not
handed over: only the kernel program can reach them.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from detector.base.errors import ExitprintError, HostError
from detector.base.interpreter import module_command
from detector.config.model import Tables
from detector.kernel import bpf, btf, control, source
from detector.kernel.binding import load_bcc
from detector.kernel.tables import Budgets
from detector.kernel.tables import macros as table_macros

HOOKS = ("netfilter", "kprobe")
MAPS = (
    "pairs", "exits", "exit_lines", "exits_met", "slots", "evidences", "controls", "outcomes",
    "peers", "networks4", "networks6", "watched", "pools",
)  # fmt: skip

_PR_SET_PDEATHSIG = 1
_CONFIRM = "__nf_conntrack_confirm"
_FUNCTIONS = {"netfilter": b"on_packet", "kprobe": b"on_confirm"}
_INSTRUCTION = struct.Struct("<BBhi")  # operation, registers, offset, number
_CALL, _HELPER, _KERNEL_FUNCTION = 0x85, 0, 2 << 4  # what the source register says is called
_MAX_MESSAGE = 65536
_MAX_DESCRIPTORS = 32
_MAX_ERRORS = 3
_TIMEOUT = 300.0  # seconds; an emulated machine takes ten, and far longer when it is busy


@dataclass(frozen=True, slots=True)
class Loaded:
    """The running program: everything is gone from the kernel when these descriptors are closed.

    Attributes:
        hook: the hook that worked.
        refused: why each hook that was tried before it did not work.
        descriptors: by name: the maps of `MAPS`, "program", and the links "link0", "link1".
    """

    hook: str
    refused: dict[str, str]
    descriptors: dict[str, int]

    def close(self) -> None:
        """Detach the program and drop the maps."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)


def load(hook: str, sizes: Tables, session_gap: float) -> Loaded:
    """Compile and attach the program in our network namespace.

    Args:
        hook: one of `HOOKS`, or "auto" to try them in that order.
        sizes: of the tables.
        session_gap: seconds without a new flow that end a session.

    Raises:
        HostError: it cannot be had on this host; says why for each hook that was tried.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = json.dumps({"hook": hook, "sizes": asdict(sizes), "session_gap": session_gap})
    command = module_command("detector.kernel.loader", str(theirs.fileno()), request)
    with ours:
        with theirs:
            # It hears of no signal: who started it ends it.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        ours.settimeout(_TIMEOUT)
        try:
            message, descriptors, _, _ = socket.recv_fds(ours, _MAX_MESSAGE, _MAX_DESCRIPTORS)
        except TimeoutError:
            child.kill()
            message, descriptors = b"", []
        except BaseException:
            child.kill()
            child.wait()
            raise
        status = child.wait()
    if not message:
        raise HostError(f"the loader ended before it was done ({_ending(status)})", "see the lines above")
    answer = json.loads(message)
    if "error" in answer:
        raise HostError(answer["error"], answer["hint"])
    return Loaded(answer["hook"], answer["refused"], dict(zip(answer["names"], descriptors, strict=True)))


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def _build(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Compile and attach; returns the BCC object (which keeps the maps open) and the answer's parts."""
    types = conntrack_btf()
    sizes = Tables(**request["sizes"])
    macros = source.offsets(types) | source.draw_secret() | table_macros(sizes)
    macros["EP_NAMESPACE"] = os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116  (does not follow to a path)
    wanted = HOOKS if request["hook"] == "auto" else (request["hook"],)
    hook, refused, program, attached = _first_that_attaches(wanted, macros, types.kernel)
    maps = {name: program[name.encode()].get_fd() for name in MAPS}
    control.start(maps, time.monotonic(), request["session_gap"], Budgets.of(sizes))
    return program, {"hook": hook, "refused": refused, "descriptors": maps | attached}


def compiled(hook: str, macros: Mapping[str, int], kernel: btf.Btf) -> Any:
    """The program for one hook as a BCC object, with its maps made and nothing loaded.

    Raises:
        HostError: it does not compile, or the maps are refused.
        OSError: the kernel is too old for the hook.
    """
    direct = {}
    if hook == "netfilter":
        direct = source.direct_reads(kernel, macros["EP_CT_SPAN"])
        if not direct:
            raise OSError(errno.ENOSYS, "this kernel has no netfilter programs, 6.4 and newer do")
    bcc = load_bcc()
    text = source.text().encode()
    with _c_messages() as messages:
        try:
            program = bcc.BPF(text=text, cflags=source.flags({**macros, **direct}))
        except Exception as error:
            raise HostError(
                "the kernel program does not compile or its tables do not fit",
                _errors(messages()) or str(error),
            ) from error
    if direct:
        _mark_kernel_function(bcc.lib, program.module, direct["EP_RDONLY_CAST"])
    return program


def _mark_kernel_function(library: Any, module: Any, number: int) -> None:
    """Make calls of a kernel function of what Clang takes for calls of the helper with its number.

    BCC knows helpers alone. The two instructions differ in one field, the source register.
    """
    name = _FUNCTIONS["netfilter"]
    start = library.bpf_function_start(module, name)
    code = (ctypes.c_char * library.bpf_function_size(module, name)).from_address(start)
    for at in range(0, len(code), _INSTRUCTION.size):
        if _INSTRUCTION.unpack_from(code, at) == (_CALL, _HELPER, 0, number):
            _INSTRUCTION.pack_into(code, at, _CALL, _KERNEL_FUNCTION, 0, number)


def conntrack_btf() -> btf.Btf:
    """The BTF that has ``nf_conn``: the kernel's own, or that of its module."""
    types = btf.read()
    return types if types.has("nf_conn", "status") else btf.read("nf_conntrack")


def _first_that_attaches(
    hooks: tuple[str, ...], macros: Mapping[str, int], kernel: btf.Btf
) -> tuple[str, dict[str, str], Any, dict[str, int]]:
    """Try hooks in order.

    Returns:
        The hook, why each one before it was refused, the BCC object, and the descriptors of program and
        links.

    Raises:
        HostError: none works.
    """
    refused: dict[str, str] = {}
    for hook in hooks:
        for variant in _VARIANTS[hook]:
            with _c_messages() as messages:
                try:
                    program = compiled(hook, {**macros, **variant}, kernel)
                    attached = _ATTACH[hook](program)
                except HostError:
                    raise
                except OSError as error:
                    refused[hook] = _reason(hook, error)
                except Exception:  # BCC raises bare ones; what happened is what it printed
                    refused[hook] = _last_line(messages()) or "the kernel refuses the program"
                else:
                    refused.pop(hook, None)
                    return hook, refused, program, attached
    what = "; ".join(f"{hook}: {reason}" for hook, reason in refused.items())
    raise HostError(f"no hook can be attached ({what})", "see what is missing with: exitprint doctor")


def _attach_netfilter(program: Any) -> dict[str, int]:
    function = program.load_func(
        _FUNCTIONS["netfilter"], bpf.PROG_TYPE_NETFILTER, attach_type=bpf.ATTACH_NETFILTER
    )
    links = [bpf.netfilter_link(function.fd, protocol) for protocol in (bpf.NFPROTO_IPV4, bpf.NFPROTO_IPV6)]
    return {"program": function.fd, "link0": links[0], "link1": links[1]}


def _attach_kprobe(program: Any) -> dict[str, int]:
    function = program.load_func(_FUNCTIONS["kprobe"], load_bcc().BPF.KPROBE)
    return {"program": function.fd, "link0": bpf.kprobe(function.fd, _CONFIRM)}


_ATTACH: dict[str, Callable[[Any], dict[str, int]]] = {
    "netfilter": _attach_netfilter,
    "kprobe": _attach_kprobe,
}


# What is compiled for a hook, until the kernel takes it: before 5.12 BPF has no compare-and-swap.
_VARIANTS: dict[str, tuple[dict[str, int], ...]] = {"netfilter": ({},), "kprobe": ({}, {"EP_NO_SWAP": 1})}


def _reason(hook: str, error: OSError) -> str:
    if hook == "kprobe":
        if error.errno == errno.ENOENT and error.filename:
            return "this kernel has no kprobes"
        if error.errno == errno.ENOENT:
            return f"{_CONFIRM} is not in the kernel; load conntrack with: modprobe nf_conntrack"
        if error.errno in (errno.EACCES, errno.EPERM):
            return "kprobes are not allowed here; kernel.perf_event_paranoid above 2 asks for CAP_SYS_ADMIN"
    return (error.strerror or str(error)).lower()


def _errors(text: str) -> str:
    """The compiler's and the kernel's errors, in short, without warnings and quoted lines."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\berror\b", line)]
    return "; ".join(lines[:_MAX_ERRORS])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""


@contextmanager
def _c_messages() -> Iterator[Callable[[], str]]:
    """Catch what libbcc prints on standard error, where it puts compiler and verifier messages."""
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)

        def text() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield text
        finally:
            os.dup2(before, 2)
            os.close(before)


def _die_with_parent(channel: socket.socket) -> None:
    """Compile for nobody: end at once when the process that started us has ended, also before this call."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    channel.setblocking(False)
    try:
        if not channel.recv(1):
            os._exit(0)
    except BlockingIOError:
        channel.setblocking(True)


def main(descriptor: int, request: str) -> None:
    """The child: answer on the socket whose descriptor is given."""
    channel = socket.socket(fileno=descriptor)
    _die_with_parent(channel)
    try:
        _program, answer = _build(json.loads(request))
        descriptors = answer.pop("descriptors")
        message = json.dumps(answer | {"names": list(descriptors)})
        socket.send_fds(channel, [message.encode()], list(descriptors.values()))
    except ExitprintError as error:
        channel.send(json.dumps({"error": error.what, "hint": error.hint}).encode())
    except OSError as error:  # a file of ours is missing, or a system call is refused
        what = f"the kernel program cannot be built: {error.strerror or error}".lower()
        hint = f"see {error.filename}" if error.filename else "see what is missing with: exitprint doctor"
        channel.send(json.dumps({"error": what, "hint": hint}).encode())
    # BCC would disable the kprobe on its way out: the descriptors are shared with the parent now.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
