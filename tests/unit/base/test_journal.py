# SPDX-License-Identifier: Apache-2.0
"""Lines that go to the journal begin with their priority; others never do."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from detector.base.journal import is_journal, priority
from detector.cli import main


def named(stream: io.TextIOWrapper) -> str:
    """What systemd calls a stream."""
    found = os.fstat(stream.fileno())
    return f"{found.st_dev}:{found.st_ino}"


def test_it_is_the_journal_only_where_systemd_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name has to be that of the very stream: a pipe behind it is none of the journal's."""
    with (tmp_path / "one").open("w") as one, (tmp_path / "two").open("w") as two:
        monkeypatch.setenv("JOURNAL_STREAM", named(one))
        assert [is_journal(one), is_journal(two), is_journal(io.StringIO())] == [True, False, False]
        monkeypatch.delenv("JOURNAL_STREAM")
        assert not is_journal(one)


@pytest.mark.parametrize(("level", "begins"), [("warning", "<4>"), ("unheard of", "<6>")])
def test_a_level_has_a_priority(level: str, begins: str) -> None:
    """As syslog numbers them; what is not known is plain information."""
    assert priority(level) == begins


def test_errors_of_the_command_carry_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a service does not start is an error in the journal, every line of it."""
    monkeypatch.setattr("detector.cli.is_journal", lambda _stream: True)
    path = tmp_path / "exitprint.yml"
    path.write_text("hook: a\nwindow: b\n")
    done = CliRunner().invoke(main, ["check-config", str(path)])
    assert done.exit_code == 2
    assert [line[:3] for line in done.stderr.splitlines()] == ["<3>"] * 3
