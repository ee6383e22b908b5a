# SPDX-License-Identifier: Apache-2.0
"""The recording rules and alerts as code: one text for every engine, with the operator's own label names.

`deploy/prometheus/*.yml` is what `make generate` writes with the defaults; `python -m tools.rules --help`
writes them with other names, another job, other thresholds, and the operator's own address of the runbooks.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

from tools.rules.canaries import Votes, canary_rules

FOLDER = Path(__file__).parent
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Parameters:
    """What operators call things, and from when on something is told.

    Attributes:
        fleet, relay: the target labels that say which fleet and which relay.
        job: the job that scrapes exitprint.
        coverage: share of the flows that must have been counted for a leak to be believed.
        many: relays of one fleet that leak from which on one message tells of them all.
        certificate: seconds before a certificate ends from which on that is told.
        runbooks: the address that the runbooks are served at.
    """

    fleet: str = "fleet"
    relay: str = "relay"
    job: str = "exitprint"
    coverage: float = 0.95
    many: int = 5
    certificate: int = 14 * 86_400
    runbooks: str = "https://runbooks.example.net/exitprint"

    def __post_init__(self) -> None:
        for name in (self.fleet, self.relay):
            if not _LABEL.fullmatch(name):
                raise ValueError(f"not the name of a label: {name}")
        if self.fleet == self.relay:
            raise ValueError("fleet and relay are two labels")


class _Rules(Template):
    """`@{name}` is a parameter; `$` and `{}` are PromQL's and the annotations'."""

    delimiter = "@"


def rendered(text: str, parameters: Parameters) -> str:
    """A text with the parameters in their places."""
    return _Rules(text).substitute(asdict(parameters))


def files(parameters: Parameters | None = None) -> dict[str, str]:
    """The files of rules by name."""
    parameters = parameters or Parameters()
    texts = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.yml"))}
    texts["exitprint-fleet.yml"] = canary_rules(Votes())
    return {name: rendered(text, parameters) for name, text in texts.items()}
