# SPDX-License-Identifier: Apache-2.0
"""What reaches the log, and what must not."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import structlog

from detector import logs
from detector.base.errors import HostError
from detector.base.log_options import LogFormat

KEY = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
TUNNEL = "10.64.12.34"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leaves the interpreter's hooks and the root logger as they were."""
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.root.handlers[:], logging.root.level = handlers, level
    structlog.reset_defaults()


class Terminal(io.StringIO):
    """Takes text and says it is a terminal."""

    def isatty(self) -> bool:
        """What decides on pretty lines."""
        return True


def fail() -> None:
    """Raises what a library would: a message with a peer in it, and a peer among the local variables."""
    peer = {"key": KEY}
    try:
        raise ValueError(f"no route to {TUNNEL}")
    except ValueError as error:
        raise RuntimeError(peer) from error


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """The stream's lines, as JSON."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line() -> None:
    """Without a terminal a line is one JSON object with process, level and UTC time."""
    stream = io.StringIO()
    logs.configure("sensor", stream=stream)
    logs.get_logger().info("peers read", peers=3)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "peers read", "peers": 3, "level": "info", "process": "sensor"}


def test_pretty_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets a coloured line, and one without colours when NO_COLOR is set."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for coloured in (True, False):
        stream = Terminal()
        logs.configure("sensor", stream=stream)
        logs.get_logger().info("peers read")
        assert "peers read" in stream.getvalue()
        assert ("\x1b[" in stream.getvalue()) is coloured
        monkeypatch.setenv("NO_COLOR", "1")


def test_levels() -> None:
    """Nothing under the configured level is written."""
    stream = io.StringIO()
    logs.configure("sensor", level="warning", stream=stream)
    logs.get_logger().info("quiet")
    logs.get_logger().warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


@pytest.mark.parametrize("form", ["json", "pretty"])
def test_an_exception_is_told_without_its_content(form: Any) -> None:
    """An exception and its cause appear as types and places; neither message nor variable does."""
    stream = io.StringIO()
    logs.configure("aggregator", form, stream=stream)
    try:
        fail()
    except RuntimeError:
        logs.get_logger().exception("cycle failed")
    text = stream.getvalue()
    assert "RuntimeError at test_logs.py:" in text
    assert ":fail < test_logs.py:" in text
    assert "; after ValueError at" in text
    assert KEY not in text
    assert TUNNEL not in text


def test_debug_tells_messages_but_no_variables() -> None:
    """At level debug the message is there, the variables around it are not."""
    stream = io.StringIO()
    logs.configure("sensor", level="debug", stream=stream)
    try:
        secret = KEY
        raise ValueError("no such thing")
    except ValueError as error:
        logs.get_logger().error("failed", exc_info=error)
    assert "ValueError: no such thing" in stream.getvalue()
    assert secret not in stream.getvalue()


def test_our_errors_are_told_in_full() -> None:
    """An error made for people keeps its text and hint; one of the system its code."""
    told = logs.describe_exception(HostError("no BTF", "boot another kernel"))
    assert told == "HostError: no BTF; boot another kernel at no place"
    assert logs.describe_exception(OSError(2, TUNNEL)).startswith("FileNotFoundError[ENOENT] at")


def test_a_long_chain_ends() -> None:
    """A chain of causes that loops or goes on is cut."""
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert logs.describe_exception(first).count("after") == 4


def test_objects_are_told_by_their_type() -> None:
    """Bytes, addresses and other objects do not reach the log by accident, also inside a list."""
    stream = io.StringIO()
    logs.configure("sensor", stream=stream)
    logs.get_logger().info("odd", a=TUNNEL.encode(), b=[ip_address(TUNNEL)], c={"d": object()}, e=Path("/x"))
    (line,) = lines(stream)
    assert (line["a"], line["b"], line["c"]) == ("<bytes>", ["<IPv4Address>"], {"d": "<object>"})
    assert line["e"] == "/x"


def test_libraries_are_told_by_their_name() -> None:
    """What a library logs is told as who and where."""
    stream = io.StringIO()
    logs.configure("sensor", stream=stream)
    logging.getLogger("pyroute2").error("peer %s is odd", TUNNEL)
    (line,) = lines(stream)
    assert (line["event"], line["logger"]) == ("library", "pyroute2")
    assert TUNNEL not in stream.getvalue()


@pytest.mark.parametrize(
    "body",
    [
        "raise ValueError(K)",
        "import threading; t = threading.Thread(target=int, args=(K,)); t.start(); t.join()",
    ],
)
def test_uncaught_exceptions_are_logged(body: str) -> None:
    """What nobody catches becomes a log line without its message, not a traceback."""
    code = f"from detector import logs; logs.configure('loader'); K = {KEY!r}; {body}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    line = json.loads(done.stderr)
    assert (line["event"], line["process"]) == ("unexpected error", "loader")
    assert line["exception"].startswith("ValueError at ")
    assert KEY not in done.stderr


def test_a_reader_that_went_away_stops_nothing() -> None:
    """Logging into a closed pipe or file raises nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True)
    logs.configure("sensor", stream=stream)
    logs.get_logger().info("into the void")
    stream.detach().close()
    closed = io.StringIO()
    logs.configure("sensor", stream=closed)
    closed.close()
    logs.get_logger().info("into a closed file")


def test_rich_stays_out() -> None:
    """Logging loads no rich, yet leaves it importable, also on a terminal."""
    master, slave = pty.openpty()
    code = (
        "import sys; from detector import logs; logs.configure('sensor'); "
        "found = [m for m in sys.modules if m.startswith('rich')]; assert not found, found; "
        "import rich.console"
    )
    subprocess.run([sys.executable, "-c", code], stderr=slave, check=True)
    os.close(slave)
    os.close(master)


@pytest.mark.parametrize("form", ["json", "pretty"])
def test_log_lines_carry_their_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: LogFormat
) -> None:
    """`journalctl -p warning` shows warnings and errors, and no other line."""
    path = tmp_path / "log"
    with path.open("w") as stream:
        monkeypatch.setenv("JOURNAL_STREAM", "{0.st_dev}:{0.st_ino}".format(os.fstat(stream.fileno())))
        logs.configure("sensor", form, "debug", stream)
        for level in ("debug", "info", "warning", "error"):
            getattr(logs.get_logger(), level)("something", number=1)
    lines = path.read_text().splitlines()
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>"]
    if form == "json":
        assert json.loads(lines[2][3:])["level"] == "warning"
