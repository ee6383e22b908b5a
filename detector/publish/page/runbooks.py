# SPDX-License-Identifier: Apache-2.0
"""The runbooks, served by the relay itself: whoever is woken by it needs no other machine to read them."""

from __future__ import annotations

from pathlib import Path


def _folder() -> Path:
    """Where they are: inside an installed package, or beside it in a clone."""
    package = Path(__file__).parents[2]
    inside = package / "runbooks"
    return inside if inside.is_dir() else package.parent / "deploy" / "runbooks"


# Read now: the process that serves them may not be able to look there later.
TEXTS = {file.stem: file.read_bytes() for file in sorted(_folder().glob("*.md"))}


def address(name: str) -> str:
    """The path that a runbook is served at."""
    return f"/runbooks/{name}.md"


def named(path: str) -> bytes | None:
    """The text of the runbook at a path, None where there is none."""
    name = path.removeprefix("/runbooks/").removesuffix(".md")
    return TEXTS.get(name) if path == address(name) else None
