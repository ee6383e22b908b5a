# SPDX-License-Identifier: Apache-2.0
"""Saying a thing once when it begins and once when it is over, however often it is looked at."""

from __future__ import annotations

from detector.base.errors import ExitprintError
from detector.logs import get_logger


class Warnings:
    """What has been said and still holds."""

    def __init__(self) -> None:
        self._standing: dict[str, str] = {}

    def warn_once(
        self, topic: str, event: str, error: ExitprintError | None, count: int | None = None
    ) -> None:
        """Warn, unless just that was said of this topic before."""
        text = f"{event}: {error}: {count}"
        if self._standing.get(topic) == text:
            return
        self._standing[topic] = text
        details = {"reason": str(error)} if error else {}
        get_logger().warning(event, **details, **({} if count is None else {"count": count}))

    def resolve(self, topic: str) -> None:
        """It is over."""
        if self._standing.pop(topic, None) is not None:
            get_logger().info("over", topic=topic)
