# SPDX-License-Identifier: Apache-2.0
"""Whom the inspect socket lets in, shown with processes of other users and groups."""

from __future__ import annotations

import grp
import json
import os
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.base.errors import HostError, UsageError
from detector.config.model import Config
from detector.publish.inspect import socket as inspect
from detector.publish.inspect.access import Access, access_of
from tests.rights import AS_STRANGER

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
]
OWNER, GROUP, STRANGER = 64_001, 64_002, 64_003  # nobody has these numbers


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A socket for one user and one group, in folders that everybody may enter."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    where = tmp_path / "inspect.sock"
    access = Access(OWNER, GROUP, 0o660)
    with inspect.listen(where, access) as listener:
        inspect.serve(listener, {"status": lambda _: {"verdict": "unknown"}}, access)
        yield where
        listener.shutdown(socket.SHUT_RDWR)


def asked_by(path: Path, user: int, group: int, *others: int) -> str:
    """What a process with these numbers is told; it is Python's own library that asks."""
    code = (
        "import socket; client = socket.socket(socket.AF_UNIX)\n"
        f'try:\n client.connect({str(path)!r}); client.sendall(b\'{{"request":"status"}}\\n\')\n'
        "except OSError as error: print(type(error).__name__)\n"
        "try: print(client.recv(4096).decode())\n"
        "except OSError: pass"
    )
    groups = ["--groups", ",".join(map(str, others))] if others else ["--clear-groups"]
    become = ["setpriv", "--reuid", str(user), "--regid", str(group), *groups]
    done = subprocess.run(
        [*become, "/usr/bin/python3", "-I", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_socket_is_its_owners_and_its_groups(path: Path) -> None:
    """Owner, group and mode are the configured ones."""
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (OWNER, GROUP, 0o660)


@pytest.mark.parametrize(
    ("user", "groups"),
    [(0, (0,)), (OWNER, (STRANGER,)), (STRANGER, (GROUP,)), (STRANGER, (STRANGER, 7, GROUP))],
)
def test_who_may_is_answered(path: Path, user: int, groups: tuple[int, ...]) -> None:
    """Root, the owner, and members of the group, whether it is their first one or another."""
    assert json.loads(asked_by(path, user, *groups)) == {"verdict": "unknown"}


def test_a_stranger_cannot_connect(path: Path) -> None:
    """The file's mode stops everybody else."""
    assert asked_by(path, STRANGER, STRANGER, 7).splitlines()[0] == "PermissionError"


def test_a_stranger_who_gets_through_is_refused(path: Path) -> None:
    """Where somebody opened the file's mode, the kernel's word on who asks decides, and a refusal says so."""
    path.chmod(0o666)
    answer = asked_by(path, STRANGER, STRANGER, 7).splitlines()[-1]
    assert json.loads(answer) == {
        "error": "only root and whom inspect_owner and inspect_group name may ask",
        "hint": "ask as root",
        "status": 3,
    }


def test_the_command_says_whom_to_be(path: Path) -> None:
    """`exitprint status` of a stranger ends with status 3 and what to do, without a traceback."""
    command = [*AS_STRANGER, sys.executable, "-m", "detector", "status", "--socket", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "is not for this user" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_anybody_may_write_is_refused(tmp_path: Path) -> None:
    """There somebody could put another socket in the place of ours."""
    tmp_path.chmod(0o777)
    with pytest.raises(HostError, match="anybody may write in"):
        inspect.listen(tmp_path / "inspect.sock")
    assert list(tmp_path.iterdir()) == []


def test_names_become_numbers() -> None:
    """The configuration's names are those of this host, and one that does not exist is named."""
    group = grp.getgrgid(os.getgid()).gr_name
    config = Config(inspect_owner=pwd.getpwuid(65534).pw_name, inspect_group=group)
    assert access_of(config) == Access(65534, os.getgid(), 0o660)
    assert access_of(Config()) == Access(0, None, 0o600)
    with pytest.raises(UsageError, match="inspect_group: there is no group no-such-group"):
        access_of(Config(inspect_group="no-such-group"))
    with pytest.raises(UsageError, match="inspect_owner: there is no user no-such-user"):
        access_of(Config(inspect_owner="no-such-user"))
