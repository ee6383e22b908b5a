# SPDX-License-Identifier: Apache-2.0
"""Mutants are other programs, one change each, and say where it is."""

from __future__ import annotations

import ast

from tools.mutants import ROOT, mutants_of


def test_each_mutant_is_another_program() -> None:
    """Every one parses and differs from the module and from all the others."""
    path = ROOT / "detector/predictors/tails.py"
    original = ast.unparse(ast.parse(path.read_text()))
    made = list(mutants_of(path))
    assert len(made) > 15
    assert original not in {one.source for one in made}
    assert len({one.source for one in made}) > 0.9 * len(made)
    lines = path.read_text().splitlines()
    assert all(0 < one.line <= len(lines) and one.path == "detector/predictors/tails.py" for one in made)
    assert {"LtE -> Gt", "Or swapped"} <= {one.what for one in made}
