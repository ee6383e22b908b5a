# SPDX-License-Identifier: Apache-2.0
"""Writes docs/schemas/: a JSON schema for what each command prints with `--json`, made from the code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from detector.base import answers
from detector.config.model import Config

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"

# By command. `watch` prints a line of `watch` for each change; `lab` and `analyze` print reports.
ANSWERS: Mapping[str, Any] = {
    "analyze": answers.ReportAnswer,
    "audit": answers.AuditAnswer,
    "check-config": Config,
    "doctor": answers.DoctorAnswer,
    "explain": answers.ExplainAnswer,
    "history": answers.HistoryAnswer,
    "lab": answers.StatusAnswer,
    "peers": answers.PeersAnswer,
    "report": answers.PublicAnswer,
    "retention": answers.RetentionAnswer,
    "simulate": answers.SimulateAnswer,
    "status": answers.AdvisedAnswer,
    "watch": answers.StatusAnswer | answers.GoneAnswer,
}


def schema_of(command: str) -> dict[str, Any]:
    """The schema of what a command prints: keys that it does not name may come with a later release."""
    if command == "watch":  # of two kinds of objects no single type is made
        made = [
            msgspec.json.schema(answer, schema_hook=_text)
            for answer in (answers.StatusAnswer, answers.GoneAnswer)
        ]
        body: dict[str, Any] = {"anyOf": [{"$ref": one["$ref"]} for one in made]}
        body["$defs"] = made[0]["$defs"] | made[1]["$defs"]
    else:
        body = msgspec.json.schema(ANSWERS[command], schema_hook=_text)
    if command == "check-config":
        body["$defs"]["Config"]["properties"]["schema_version"] = {"type": "integer"}
    version = answers.SCHEMA_VERSION
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:exitprint:{command}:{version}",
        "title": f"exitprint {command} --json, version {version}",
    }
    return head | body


def _text(_: type) -> dict[str, Any]:
    """What JSON has no type for is a text: addresses and their ranges."""
    return {"type": "string"}


def text_of(command: str) -> str:
    """The file as it is kept."""
    return json.dumps(schema_of(command), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for command in ANSWERS:
        (FOLDER / f"{command}.json").write_text(text_of(command))


if __name__ == "__main__":
    main()
