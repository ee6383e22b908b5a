# SPDX-License-Identifier: Apache-2.0
"""The command as a person meets it: help, mistakes, pipes and terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from detector import __version__
from detector.cli import main
from detector.publish.inspect import socket as inspect
from tests.rights import AS_STRANGER

COMMANDS = main.list_commands(click.Context(main))
ESCAPE = "\x1b"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]")
FAMILY = {
    "verdict": "predictable",
    "predictor": "kernel_persistent",
    "flows": 2160,
    "peers": 90,
    "exits": 59,
    "pool_size": 59,
    "contrasts": {
        name: {"trials": trials, "observed": 1.0, "chance": 0.017}
        for name, trials in (("any", 90), ("same_destination", 9), ("same_port", 0))
    },
    "explained": {"kernel_persistent": {"ratio": 1.0, "chance": 0.017}},
    "anonymity_set": {"min": 1.0, "median": 2.0},
    "leak_bits": 5.9,
    "peers_flagged": {"pinned": 90},
    "findings": ["predictable", "pinned"],
    "coverage": 1.0,
    "unknown_because": [],
    "suspected": [],
    "since": "2026-01-02T03:04:05+00:00",
    "rules_at_fault": ["ip exits postrouting handle 2"],
}
REPORT = {
    "verdict": "predictable",
    "predictor": "kernel_persistent",
    "coverage": 1.0,
    "why": "The exit follows from the tunnel address [red]alone[/red].",
    "families": {"ipv4": FAMILY, "ipv6": FAMILY | {"verdict": "unknown", "predictor": None}},
    "schema_version": 1,
    "relay": "r",
    "since": "2026-01-02T03:04:05+00:00",
    "made": "2026-01-02T03:05:05+00:00",
    "cycles": 7,
    "interval": 10.0,
    "window": 86400.0,
    "anonymity_floor": 5,
    "epoch": {"number": 1, "since": "2026-01-02T03:04:05+00:00", "change": {}},
    "configuration": {"last_reload_successful": True, "read": None, "restart_needed": []},
    "hook": "netfilter",
    "page": "http://127.0.0.1:9973",
    "runbooks": "http://127.0.0.1:9973/runbooks",
    "rules_not_understood": 1,
    "waiting": "",
    "lost": {},
    "unattributed": 0,
    "canaries": [],
    "floods": [],
}


def exitprint(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its output through pipes."""
    command = [sys.executable, "-m", "detector", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What the command prints where standard output and error are a terminal."""
    pid, terminal = pty.fork()
    if not pid:
        os.execve(  # noqa: S606
            sys.executable,
            [sys.executable, "-m", "detector", *arguments],
            {**os.environ, "TERM": "xterm-256color", **environment},
        )
    said = b""
    try:
        while part := os.read(terminal, 4096):
            said += part
    except OSError:  # how a terminal says that its other end is closed
        pass
    os.close(terminal)
    os.waitpid(pid, 0)
    return said.decode()


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_has_help(name: str) -> None:
    """Help comes with status 0, a usage line, and a sentence about what the command is for."""
    done = CliRunner().invoke(main, [*([name] if name else []), "--help"], prog_name="exitprint")
    assert done.exit_code == 0
    assert done.output.startswith(f"Usage: exitprint {name}".rstrip())
    assert re.search(r"\n\n  [A-Z][^.]+\.|\n\n  [A-Z].+ [a-z]+\n", done.output)


def test_the_promised_commands_are_there() -> None:
    """Each command of the documentation can be asked for."""
    assert set(COMMANDS) >= {"run", "lab", "analyze", "audit", "simulate", "status", "doctor", "check-config"}


def test_the_version_is_said() -> None:
    """`--version` names the program and its version."""
    assert CliRunner().invoke(main, ["--version"]).output == f"exitprint, version {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_a_users_error(name: str) -> None:
    """Status 2 and the option's name, on standard error."""
    done = CliRunner().invoke(main, [name, "--no-such-option"])
    assert done.exit_code == 2
    assert "--no-such-option" in done.stderr
    assert done.stdout == ""


def test_an_unknown_command_is_a_users_error() -> None:
    """Status 2 and its name."""
    done = CliRunner().invoke(main, ["frobnicate"])
    assert (done.exit_code, "frobnicate" in done.stderr) == (2, True)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    """Both commands that read a configuration say which file they cannot read, and print no traceback."""
    path = tmp_path / "[no] such.yml"
    for command in (["run", "--config", str(path)], ["check-config", str(path)]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2
        assert f"{path}: cannot be read: no such file" in done.stderr
        assert "Traceback" not in done.stderr


def test_nobody_to_ask_is_said(tmp_path: Path) -> None:
    """`status` without a service says where it asked and what to look at, with status 3."""
    done = exitprint("status", "--socket", str(tmp_path / "none.sock"))
    assert done.returncode == 3
    assert f"the service does not answer at {tmp_path / 'none.sock'}" in done.stderr
    assert "is it running?" in done.stderr
    assert (done.stdout, ESCAPE in done.stderr) == ("", False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A socket that answers with a report for as long as the test lasts."""
    if os.geteuid() != 0:
        pytest.skip("the local socket answers root alone")
    where = tmp_path / "inspect.sock"
    inspect_listener(where, REPORT)
    return where


def inspect_listener(where: Path, report: Mapping[str, object]) -> None:
    """Answer `status` there."""
    inspect.serve(inspect.listen(where), {"status": lambda _: dict(report)})


def test_json_is_alone_on_standard_output(path: Path) -> None:
    """`status --json` prints one object, the service's and what to do about it, and nothing else anywhere."""
    done = exitprint("status", "--socket", str(path), "--json")
    printed = json.loads(done.stdout)
    assert printed.pop("advice")["runbook"].endswith("/ExitprintMappingPredictable.md")
    assert (printed, done.stderr, done.returncode) == (REPORT, "", 0)


def test_a_pipe_gets_plain_text(path: Path) -> None:
    """Verdict, reason and both families, without an escape code; brackets are text, not markup."""
    done = exitprint("status", "--socket", str(path))
    assert ESCAPE not in done.stdout
    for part in (
        "predictable by kernel_persistent",
        "[red]alone[/red]",
        "IPv4",
        "IPv6",
        "5.9 bits",
        "not seen",
    ):
        assert part in done.stdout


def test_a_terminal_gets_colours_unless_they_are_not_wanted(path: Path) -> None:
    """NO_COLOR takes the colours away, on a terminal too, from reports and from errors."""
    status = ("status", "--socket", str(path))
    wrong = ("status", "--socket", f"{path}.none")
    for command in (status, wrong):
        assert COLOUR.search(on_a_terminal(*command))
        assert not COLOUR.search(on_a_terminal(*command, NO_COLOR="1"))
        assert ESCAPE not in on_a_terminal(*command, TERM="dumb")


def test_a_reader_that_leaves_is_no_error(path: Path) -> None:
    """Output into a pipe that nobody reads ends quietly."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "detector", "status", "--socket", str(path)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert "Traceback" not in done.stderr


def test_the_service_is_started_by_root(tmp_path: Path) -> None:
    """Another user is told so, with status 3, before anything is touched."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    config = tmp_path / "exitprint.yml"
    config.write_text("relay: r\nlisten: 127.0.0.1:0\n")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    command = [*AS_STRANGER, sys.executable, "-m", "detector", "run", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "the service is to be started by root" in done.stderr
    assert "Traceback" not in done.stderr
