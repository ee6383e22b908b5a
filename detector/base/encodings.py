# SPDX-License-Identifier: Apache-2.0
"""Text for terminals of any encoding: what one cannot show is written with plain characters."""

from __future__ import annotations

import codecs
from typing import IO, Any

_NAME = "exitprint-plain"
_PLAIN = {
    "–": "-",
    "—": "-",
    "…": "...",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "·": "-",
    "×": "x",
    "’": "'",
    "•": "*",
}


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    some = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in some), error.end


codecs.register_error(_NAME, _plain)


def tolerate(*streams: IO[Any]) -> None:
    """Let streams write plain characters for those that their encoding lacks, in place of an error."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_NAME)
