# SPDX-License-Identifier: Apache-2.0
"""How log lines are written, as the configuration says it."""

from __future__ import annotations

from typing import Literal

LogFormat = Literal["auto", "pretty", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
