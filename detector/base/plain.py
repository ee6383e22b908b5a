# SPDX-License-Identifier: Apache-2.0
"""Text of others, made harmless for a terminal."""

from __future__ import annotations

import unicodedata
from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def clean(value: Any) -> Any:
    """The same without characters that steer a terminal or turn the direction of a line."""
    if isinstance(value, str):
        return "".join(_REPLACEMENT if unicodedata.category(one) in ("Cc", "Cf") else one for one in value)
    if isinstance(value, dict):
        return {clean(key): clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [clean(one) for one in value]
    return value
