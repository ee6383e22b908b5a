# SPDX-License-Identifier: Apache-2.0
"""The published schemas: they are current, and what the commands print is what they say, key by key."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from click.testing import CliRunner

from detector.base.answers import SCHEMA_VERSION, VerdictName
from detector.base.verdicts import VERDICTS
from detector.cli import main
from detector.client import asking
from detector.config.model import Config
from detector.publish import history
from detector.publish.inspect.handlers import handlers
from detector.publish.snapshot import About, Snapshot
from tests.unit.conntrack.listings import event, flows, text
from tools.bench.oncall import snapshot_of
from tools.schemas import ANSWERS, FOLDER, schema_of, text_of

COMMANDS = sorted(ANSWERS)
RULES = """
table ip nat {
  chain post {
    type nat hook postrouting priority srcnat;
    oifname "eth0" snat to 203.0.113.1-203.0.113.9 persistent
  }
}
"""


def closed(schema: Any) -> Any:
    """The schema where keys that it does not name are not allowed: here nothing may be printed untold."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(one) for key, one in schema.items()}
    return made | {"additionalProperties": False} if "properties" in schema else made


def check(command: str, printed: object) -> None:
    """Fail where something is missing, of another type, or not in the schema."""
    jsonschema.validate(printed, closed(schema_of(command)))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_files_are_current(command: str) -> None:
    """`make generate` was run."""
    assert (FOLDER / f"{command}.json").read_text() == text_of(command)


def test_each_schema_has_a_file_and_each_file_a_schema() -> None:
    """Nothing is left over from a command of before."""
    assert sorted(file.stem for file in FOLDER.glob("*.json")) == COMMANDS


def test_every_command_with_json_has_a_schema() -> None:
    """Whoever adds a command that prints an object publishes what is in it."""
    with main.make_context("exitprint", ["status"], resilient_parsing=True) as context:
        printing = {
            name
            for name in main.list_commands(context)
            if (found := main.get_command(context, name))
            and any("--json" in option.opts for option in found.params)
        }
    assert printing - {"canary", "reflect"} <= set(COMMANDS)


def test_the_verdicts_are_those_of_the_table() -> None:
    """The type of the answers names each verdict, and no other."""
    assert get_args(VerdictName) == tuple(verdict.value for verdict in VERDICTS)


def test_a_key_that_nobody_published_is_found() -> None:
    """This file's check can fail: at the top, deep inside, and for a key that is missing."""
    good = answer("history", snapshot())
    for bad in (
        good | {"new": 1},
        good | {"events": [good["events"][0] | {"peer": "x"}]},
        {key: value for key, value in good.items() if key != "room"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check("history", bad)


def snapshot() -> Snapshot:
    """A relay that leaks, with a history."""
    made = snapshot_of(60, votes=8)
    return history.follow(replace(made, report=None, epoch=0), made)


def answer(request: str, now: Snapshot, **arguments: object) -> dict[str, Any]:
    """What the service sends."""
    about = About(Config(relay="r"), "kprobe", "http://[::1]:9973")
    made = handlers(lambda: now, lambda: about)[request](arguments)
    arrived = json.loads(json.dumps(made))
    assert isinstance(arrived, dict)
    return arrived


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("status", []),
        ("peers", []),
        ("explain", ["peer-00000007"]),
        ("history", []),
        ("retention", []),
        ("report", ["--public"]),
    ],
)
@pytest.mark.parametrize("begun", [True, False])
def test_what_the_service_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, command: str, arguments: list[str], begun: bool
) -> None:
    """With a report and before the first one."""
    now = snapshot() if begun or command == "explain" else Snapshot()
    monkeypatch.setattr(asking, "ask", lambda _, request, **options: answer(request, now, **options))
    done = CliRunner().invoke(main, [command, *arguments, "--json"])
    assert done.exit_code == 0
    check(command, json.loads(done.stdout))


def test_watch_and_the_lab_print_the_status() -> None:
    """The status object as it comes from the service, and why there is none."""
    for command in ("watch", "lab"):
        check(command, answer("status", snapshot()))
    check("watch", {"error": "nobody answers"})


def _listing(folder: Path) -> list[str]:
    file = folder / "events.txt"
    file.write_bytes(text([event(flow) for flow in flows(peers=3, each=5)]))
    return ["analyze", str(file)]


def _rules(folder: Path) -> list[str]:
    file = folder / "rules.nft"
    file.write_text(RULES)
    return ["audit", str(file)]


def _config(folder: Path) -> list[str]:
    file = folder / "exitprint.yml"
    file.write_text("relay: r\n")
    return ["check-config", str(file)]


@pytest.mark.parametrize(
    "arguments",
    [
        _listing,
        _rules,
        _config,
        lambda _: ["simulate", "--pools", "60,11", "--mitigation", "secret"],
        lambda _: ["doctor"],
    ],
)
def test_what_the_other_commands_print(arguments: Callable[[Path], list[str]], tmp_path: Path) -> None:
    """Each by itself, from a small input."""
    asked = arguments(tmp_path)
    done = CliRunner().invoke(main, [*asked, "--json"])
    printed = json.loads(done.stdout)
    check(asked[0], printed)
    assert printed["schema_version"] == SCHEMA_VERSION
