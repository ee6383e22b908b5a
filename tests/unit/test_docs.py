# SPDX-License-Identifier: Apache-2.0
"""What the docs point at is there: files, links, commands, and the words that they promise to have."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import pytest

from detector.base.answers import SCHEMA_VERSION
from detector.base.verdicts import VERDICTS
from detector.cli import main
from detector.client.checking import CHECK_HELP
from tools.schemas import schema_of

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/runbooks/*.md")])
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)(?:#[^)]*)?\)")
FILE = re.compile(r"`((?:detector|bpf|tools|tests|docs|deploy|dashboards|debian)/[\w./-]+\w)/?`")
COMMAND = re.compile(r"exitprint ([a-z][a-z-]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """A file or a folder of this tree."""
    links = set(LINK.findall(page.read_text()))
    lost = [link for link in sorted(links) if not (page.parent / link).exists()]
    assert lost == []


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "README.md"])
def test_every_file_that_is_named_is_there(name: str) -> None:
    """Whoever opens the map finds the houses; at least the map names some."""
    named = FILE.findall((ROOT / name).read_text())
    assert [file for file in named if not (ROOT / file).exists() and "NAME" not in file] == []
    assert len(named) > 30 or name != "ARCHITECTURE.md"


def test_every_room_is_on_the_map() -> None:
    """A folder of `detector` that ARCHITECTURE.md does not name fails here."""
    tracked = subprocess.run(
        ["git", "ls-files", "detector"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rooms = {Path(file).parts[1] for file in tracked if len(Path(file).parts) > 2}
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert [room for room in sorted(rooms) if f"`detector/{room}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_named_exists(page: Path) -> None:
    """In code, that is: prose may begin a sentence with the name."""
    with main.make_context("exitprint", ["status"], resilient_parsing=True) as context:
        known = {*main.list_commands(context), "holds"}
    code = re.findall(r"```.*?```|`[^`\n]*`", page.read_text(), re.S)
    named = {name for text in code for name in COMMAND.findall(text)}
    assert named - known - {"canary", "reflect"} == set()


def test_the_index_has_every_page() -> None:
    """No page is without a way to it."""
    index = (ROOT / "docs/index.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert [page for page in sorted(pages) if f"({page})" not in index] == []


def test_the_readme_has_every_verdict_and_the_tests_command() -> None:
    """In the order of the table, and `make test`."""
    text = (ROOT / "README.md").read_text()
    places = [text.index(f"| `{verdict}` |") for verdict in VERDICTS]
    assert places == sorted(places)
    assert "\nmake test " in text
    assert len(text.splitlines()) < 130


def test_the_exit_statuses_of_the_page_are_those_of_the_help() -> None:
    """docs/oncall.md and `exitprint status --help` say the same verdicts for each number."""
    page = (ROOT / "docs/oncall.md").read_text()
    for number, said in re.findall(r"^  (\d)  (.*)$", CHECK_HELP, re.M):
        (row,) = re.findall(rf"^\| {number} \| (.*) \|$", page, re.M)
        assert row.replace("`", "") == said


def test_the_promise_names_the_version_that_is_printed() -> None:
    """A schema with another version is another promise."""
    assert "schema_version" in (ROOT / "docs/stability.md").read_text()
    assert schema_of("status")["$id"].endswith(f":{SCHEMA_VERSION}")


def test_help_is_there_for_every_command() -> None:
    """Each says in one line what it is for."""
    with main.make_context("exitprint", ["status"], resilient_parsing=True) as context:
        for name in main.list_commands(context):
            command = main.get_command(context, name)
            assert isinstance(command, click.Command)
            assert command.get_short_help_str()
