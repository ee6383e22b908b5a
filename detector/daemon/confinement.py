# SPDX-License-Identifier: Apache-2.0
"""Walls around a process that go up when all is open and imported: seccomp and Landlock, without systemd too.

Whoever takes over the aggregator, which parses HTTP, finds a process that can open no file, start no program,
make no socket and no connection, and call nothing that it does not need. The sensor, which has CAP_NET_ADMIN
and starts nft, may write no file and has only the kinds of sockets that it needs.

libseccomp is used by ctypes: it is on every Debian (systemd and apt need it), knows the numbers of all calls
on all architectures, and one way serves the package and a virtual environment alike; its Python binding is a
package of its own in the one and missing in the other. Landlock has three calls, with the same numbers
everywhere. Constants from libseccomp's ``seccomp.h`` and the kernel's ``linux/landlock.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from detector.logs import get_logger

_log = get_logger()

_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_UNKNOWN = 0x00050000 | errno.ENOSYS
_NE, _EQ, _MASKED = 1, 4, 7
_TSYNC = 4  # seccomp_attr_set: for every thread
_NO_NEW_PRIVS = 3

_CLONE_THREAD = 0x10000
_PROT_EXEC = 4

# What the aggregator does: wait, compute, send and receive on sockets that it has, map tables that it has.
_AGGREGATOR = (
    "accept", "accept4", "alarm", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close",
    "close_range", "dup", "dup2", "dup3", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait",
    "eventfd2", "exit", "exit_group", "fadvise64", "fcntl", "fstat", "fstatfs", "fsync", "ftruncate",
    "futex", "futex_waitv", "getcpu", "getcwd", "getdents64", "getegid", "geteuid", "getgid",
    "getgroups", "getpeername", "getpgrp", "getpid", "getppid", "getpriority", "getrandom", "getrusage",
    "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "ioctl", "lseek", "lstat",
    "madvise", "membarrier", "memfd_create", "mincore", "mlock", "mremap", "msync", "munlock", "munmap",
    "nanosleep", "newfstatat", "open", "openat", "openat2", "pause", "pipe2", "poll", "ppoll", "pread64",
    "prlimit64", "pselect6", "pwrite64", "read", "readlink", "readlinkat", "readv", "recvfrom",
    "recvmsg", "restart_syscall", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
    "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "sched_getaffinity", "sched_getparam",
    "sched_getscheduler", "sched_yield", "select", "sendmsg", "sendto", "set_robust_list", "set_tid_address",
    "setitimer",
    "setsockopt", "shutdown", "sigaltstack", "stat", "statx", "sysinfo", "tgkill", "time",
    "timer_create", "timer_delete", "timer_settime", "times", "uname", "wait4", "write", "writev",
)  # fmt: skip

# What a process with CAP_NET_ADMIN that starts nft and reads netlink never does, its children neither.
_NEVER_BY_SENSOR = (
    "acct", "add_key", "adjtimex", "bind_mount", "chroot", "clock_adjtime", "clock_settime",
    "delete_module", "fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "init_module",
    "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp",
    "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mbind", "migrate_pages", "mount",
    "mount_setattr", "move_mount", "move_pages", "name_to_handle_at", "open_by_handle_at", "open_tree",
    "perf_event_open", "personality", "pidfd_getfd", "pivot_root", "process_madvise",
    "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "reboot", "request_key",
    "setdomainname", "sethostname", "setns", "settimeofday", "swapoff", "swapon", "syslog", "umount2",
    "unshare", "userfaultfd", "vhangup",
)  # fmt: skip

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION = 1
_RULE_PATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_BASIC = (1 << 13) - 1  # everything of the first version
_REFER = 1 << 13
_NET = 3  # bind and connect of TCP
_SCOPES = 3  # abstract sockets of, and signals to, processes outside

_libc = ctypes.CDLL(None, use_errno=True)


class _Compare(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_uint),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class Only:
    """A condition: an argument of a call, under a mask, has a value."""

    argument: int
    mask: int
    value: int


class Filter:
    """A seccomp filter that is being written.

    Args:
        otherwise: what a call gets that no rule names.

    Raises:
        OSError: libseccomp is not here.
    """

    def __init__(self, otherwise: int) -> None:
        try:
            self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        except OSError as error:
            raise OSError(errno.ENOENT, "libseccomp.so.2 is not here") from error
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._library.seccomp_init.argtypes = [ctypes.c_uint32]
        self._context = ctypes.c_void_p(self._library.seccomp_init(otherwise))
        self._check(self._library.seccomp_attr_set(self._context, _TSYNC, 1))
        self._check(self._library.seccomp_attr_set(self._context, _NO_NEW_PRIVS, 1))

    def add(self, action: int, calls: Iterable[str], *only: Only) -> None:
        """A rule for calls where all conditions hold; calls that the architecture has not are left out."""
        compares = (_Compare * len(only))(
            *(_Compare(one.argument, _MASKED, one.mask, one.value) for one in only)
        )
        for name in calls:
            number = self._library.seccomp_syscall_resolve_name(name.encode())
            if number < 0:
                continue
            arguments = (self._context, ctypes.c_uint32(action), number, len(only), compares)
            self._check(self._library.seccomp_rule_add_array(*arguments))

    def load(self) -> None:
        """From now on, for every thread and for whatever is started, for good."""
        self._check(self._library.seccomp_load(self._context))
        self._library.seccomp_release(self._context)

    def _check(self, result: int) -> None:
        if result < 0:
            raise OSError(-result, f"seccomp: {os.strerror(-result)}")


def confine_aggregator() -> None:
    """Nothing can be opened but what procfs says of ourselves, nothing started, nothing connected."""
    _confine(_filter_of_aggregator, [("/proc/self", _READ_FILE | _READ_DIR)], everything=True)


def confine_sensor() -> None:
    """No file is written, and calls are refused that neither we need nor the tools that list rules."""
    _confine(_filter_of_sensor, [("/dev/null", _WRITE_FILE | _TRUNCATE)], everything=False)


def _confine(build: Callable[[], Filter], files: Sequence[tuple[str, int]], *, everything: bool) -> None:
    """Put up both walls; a host that lacks one is told so, and the other one stands.

    The filter is made first, since its library is a file, and loaded last, since it refuses Landlock's calls.
    """
    rules: Filter | None = None
    with _told("seccomp"):
        rules = build()
    with _told("landlock"):
        restrict_files(files, everything=everything)
    if rules is not None:
        with _told("seccomp"):
            rules.load()


@contextmanager
def _told(wall: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _log.warning("a wall around the process is missing", wall=wall, reason=error.strerror)


def _filter_of_aggregator() -> Filter:
    rules = Filter(_REFUSE)
    rules.add(_ALLOW, _AGGREGATOR)
    rules.add(_ALLOW, ["clone"], Only(0, _CLONE_THREAD, _CLONE_THREAD))  # a thread, no process
    rules.add(_UNKNOWN, ["clone3"])  # its flags are in memory: the C library takes clone then
    rules.add(_ALLOW, ["mmap", "mprotect"], Only(2, _PROT_EXEC, 0))
    rules.add(_ALLOW, ["prctl"], Only(0, 0xFFFFFFFF, 15))  # the name of a thread
    rules.add(_ALLOW, ["kill"], Only(0, 0xFFFFFFFF, os.getpid()))
    return rules


def _filter_of_sensor() -> Filter:
    rules = Filter(_ALLOW)
    rules.add(_REFUSE, _NEVER_BY_SENSOR)
    for command in _BPF_REFUSED:
        rules.add(_REFUSE, ["bpf"], Only(0, 0xFFFFFFFF, command))
    allowed = {socket.AF_UNIX, socket.AF_NETLINK, socket.AF_INET, socket.AF_INET6}
    for family in range(_FAMILIES):
        if family not in allowed:
            rules.add(_REFUSE, ["socket"], Only(0, 0xFFFFFFFF, family))
    for family in (socket.AF_INET, socket.AF_INET6):  # iptables-legacy-save opens a raw one
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            rules.add(_REFUSE, ["socket"], Only(0, 0xFFFFFFFF, family), Only(1, 0xF, kind))
    return rules


_FAMILIES = 64
# Everything but looking up, updating and deleting elements, and asking for what the kernel says of an object.
_BPF_REFUSED = tuple(command for command in range(64) if command not in (1, 2, 3, 4, 15, 24, 25, 26, 27))


def restrict_files(allowed: Sequence[tuple[str, int]], *, everything: bool) -> None:
    """Landlock: of all files and TCP only what is named, for every thread to come, for good.

    Args:
        allowed: paths, each with what may be done there.
        everything: also reading and executing is refused elsewhere; otherwise writing and changing alone.

    Raises:
        OSError: the kernel does not have it (5.13 and newer do) or it is not enabled.
    """
    version = _landlock(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)
    handled = _BASIC
    if version >= 2:
        handled |= _REFER
    if version >= 3:
        handled |= _TRUNCATE
    if not everything:
        handled &= ~(_EXECUTE | _READ_FILE | _READ_DIR)
    elif version >= 5:
        handled |= _IOCTL_DEV
    attributes = (ctypes.c_uint64 * 3)(handled, _NET if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _landlock(_LANDLOCK_CREATE, ctypes.byref(attributes), size, 0)
    try:
        for path, access in allowed:
            _allow(rules, path, access & handled)
        if _libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
            raise OSError(ctypes.get_errno(), "no_new_privs")
        _landlock(_LANDLOCK_RESTRICT, rules, 0, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, access: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        packed = access.to_bytes(8, "little") + parent.to_bytes(4, "little", signed=True)
        rule = ctypes.create_string_buffer(packed, len(packed))
        _landlock(_LANDLOCK_ADD, rules, _RULE_PATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)


def _landlock(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
