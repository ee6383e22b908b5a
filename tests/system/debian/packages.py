# SPDX-License-Identifier: Apache-2.0
"""The packages of this tree, made once for all tests of a run."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path

from tools import dist

CONTROL = Path(__file__).parents[3] / "debian" / "control"


@functools.cache
def built() -> Path:
    """The .deb, with wheel and sdist beside it."""
    made = dist.main(Path(tempfile.mkdtemp(prefix="exitprint-packages-")))
    return next(path for path in made if path.suffix == ".deb")


def dependencies() -> list[str]:
    """What the package depends on, by debian/control."""
    text = CONTROL.read_text().partition("\nPackage: exitprint\n")[2]
    listed = text.partition("\nDepends:")[2].partition("\nRecommends:")[0]
    return re.findall(r"^ *(python3-[a-z0-9-]+),$", listed, flags=re.MULTILINE)
