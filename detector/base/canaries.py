# SPDX-License-Identifier: Apache-2.0
"""How a canary is called where a peer has its pseudonym: by its name, which is no secret."""

from __future__ import annotations

_PREFIX = "canary:"


def canary_pseudonym(name: str) -> str:
    """What stands for a canary of this name."""
    return _PREFIX + name


def canary_name(pseudonym: str) -> str | None:
    """The canary that a pseudonym stands for, None where it stands for a peer."""
    return pseudonym.removeprefix(_PREFIX) if pseudonym.startswith(_PREFIX) else None
