# SPDX-License-Identifier: Apache-2.0
"""Writes the dashboards as JSON beside their code: `python -m dashboards`."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.fleet import fleet
from dashboards.relay import relay

FOLDER = Path(__file__).parent


def files() -> dict[Path, str]:
    """What belongs into which file."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    made = {"fleet": fleet(), "relay": relay()}
    return {FOLDER / f"{name}.json": encoder.encode(one.build()) + "\n" for name, one in made.items()}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
