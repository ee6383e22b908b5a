# SPDX-License-Identifier: Apache-2.0
"""The lab's limits and its WireGuard in user space: room is made and put back, and failures say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detector.base.errors import HostError
from detector.lab import wireguard
from detector.lab.limits import Limit

NAME = "fs.inotify.max_user_instances"


def limit(folder: Path, value: str) -> tuple[Limit, Path]:
    """A host with this limit, and where it stands."""
    file = folder / NAME.replace(".", "/")
    file.parent.mkdir(parents=True)
    file.write_text(value)
    return Limit(NAME, 16384, folder), file


def test_room_is_made_and_put_back(tmp_path: Path) -> None:
    """What was there before is there again."""
    one, file = limit(tmp_path, "128\n")
    one.make_room()
    assert file.read_text() == "16384\n"
    one.put_back()
    assert file.read_text() == "128\n"


@pytest.mark.parametrize("value", ["16384\n", "65536\n"])
def test_a_limit_that_is_high_enough_stays(tmp_path: Path, value: str) -> None:
    """It is never lowered, and nothing is put back."""
    one, file = limit(tmp_path, value)
    one.make_room()
    one.put_back()
    assert file.read_text() == value


def test_what_somebody_else_set_meanwhile_stays(tmp_path: Path) -> None:
    """An administrator's number is not overwritten."""
    one, file = limit(tmp_path, "128\n")
    one.make_room()
    file.write_text("30000\n")
    one.put_back()
    assert file.read_text() == "30000\n"


def test_a_host_that_does_not_let_us(tmp_path: Path) -> None:
    """Nothing breaks here: what fails later says how to mend it."""
    one = Limit(NAME, 16384, tmp_path)
    one.make_room()
    one.put_back()
    assert "sysctl -w fs.inotify.max_user_instances=16384" in one.advice()


class _Ended:
    def poll(self) -> int:
        return 1

    def terminate(self) -> None:
        pass

    def wait(self, _seconds: float) -> None:
        pass


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        ("ERROR: UAPI listen error: too many open files", "sysctl -w fs.inotify"),
        ("ERROR: Failed to create TUN device: no such file or directory", "modprobe tun"),
        ("", "modprobe tun"),
    ],
)
def test_wireguard_go_says_why_it_did_not_start(said: str, mend: str) -> None:
    """Its own last words are in the error, with the mend that fits."""
    backend: Any = wireguard.UserWireGuard()
    backend._said.write(said.encode())
    backend._said.flush()
    backend._running["wg-none"] = _Ended()
    with pytest.raises(HostError) as error:
        backend.wait()
    backend.stop()
    assert (said or "it said nothing") in error.value.what
    assert mend in error.value.hint
