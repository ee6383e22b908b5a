# SPDX-License-Identifier: Apache-2.0
"""The running service, as its answers are typed; what arrives is made harmless for a terminal first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from detector.base.answers import (
    SCHEMA_VERSION,
    ExplainAnswer,
    HistoryAnswer,
    PeersAnswer,
    RetentionAnswer,
    StatusAnswer,
)
from detector.base.errors import HostError
from detector.base.plain import clean
from detector.publish.inspect.socket import ask


@dataclass(frozen=True, slots=True)
class RunningService:
    """One service, by the path of its socket.

    Every method raises `NotYet` where nobody answers, `HostError` where the service refuses, and `UsageError`
    where the question is wrong.
    """

    path: Path

    def status(self) -> StatusAnswer:
        """Its verdict, and how it is itself."""
        return cast(StatusAnswer, self._ask("status"))

    def peers(self, arguments: Mapping[str, object]) -> PeersAnswer:
        """The peers that match, in an order."""
        return cast(PeersAnswer, self._ask("peers", **arguments))

    def explain(self, pseudonym: str) -> ExplainAnswer:
        """One peer, by its pseudonym or by how that begins."""
        return cast(ExplainAnswer, self._ask("explain", pseudonym=pseudonym))

    def history(self) -> HistoryAnswer:
        """What changed."""
        return cast(HistoryAnswer, self._ask("history"))

    def retention(self) -> RetentionAnswer:
        """What it has in memory."""
        return cast(RetentionAnswer, self._ask("retention"))

    def _ask(self, request: str, **arguments: object) -> dict[str, Any]:
        answer = ask(self.path, request, **arguments)
        version = answer.get("schema_version")
        if version != SCHEMA_VERSION:
            raise HostError(
                f"the service speaks version {clean(str(version))}, this command {SCHEMA_VERSION}",
                "use the command of the release that runs: systemctl restart exitprint after an upgrade",
            )
        return cast(dict[str, Any], clean(answer))
