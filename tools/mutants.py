# SPDX-License-Identifier: Apache-2.0
"""Changes one thing at a time where it is decided, asks whether a test notices: `python -m tools.mutants`.

A mutant has one comparison, operator, number, boolean or negation that is another one. It stands in a copy of
the project, so nothing in the work tree is touched. One that no test notices has survived; the score of a
module is the share of those that have not.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FLOOR = 0.85
ROOT = Path(__file__).resolve().parent.parent
TESTS: Mapping[str, tuple[str, ...]] = {
    "detector/analysis": ("tests/unit/analysis", "tests/unit/counts/test_previous_epoch.py"),
    "detector/predictors": ("tests/unit/predictors",),
}
_SKIPPED = {"why.py", "__init__.py"}  # words for people
_COMPARED: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_COMPUTED: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change.

    Attributes:
        path: of the module, from the project's root.
        line: where.
        what: before and after.
        source: the module with it.
    """

    path: str
    line: int
    what: str
    source: str


class _Change(ast.NodeTransformer):
    """Makes the n-th possible change, and counts them."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.seen = 0
        self.done: tuple[int, str] | None = None

    def _takes(self, line: int, what: str) -> bool:
        mine = self.seen == self._wanted
        self.seen += 1
        if mine:
            self.done = line, what
        return mine

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """Another comparison."""
        self.generic_visit(node)
        for place, op in enumerate(node.ops):
            other = _COMPARED.get(type(op))
            if other and self._takes(node.lineno, f"{type(op).__name__} -> {other.__name__}"):
                node.ops[place] = other()
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Another operator; not in a type such as `int | None`."""
        self.generic_visit(node)
        other = _COMPUTED.get(type(node.op))
        typed = isinstance(node.op, ast.BitOr) and any(
            isinstance(side, ast.Constant) and side.value is None for side in (node.left, node.right)
        )
        if other and not typed and self._takes(node.lineno, f"{type(node.op).__name__} -> {other.__name__}"):
            node.op = other()
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        """`and` for `or`."""
        self.generic_visit(node)
        if self._takes(node.lineno, f"{type(node.op).__name__} swapped"):
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        """`not` and `~` left out."""
        self.generic_visit(node)
        if isinstance(node.op, ast.Not | ast.Invert) and self._takes(node.lineno, "negation left out"):
            return node.operand
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Another number, or the other boolean."""
        value = node.value
        if isinstance(value, bool):
            if self._takes(node.lineno, f"{value} swapped"):
                return ast.copy_location(ast.Constant(not value), node)
        elif isinstance(value, int | float) and self._takes(node.lineno, f"{value} -> {value + 1}"):
            return ast.copy_location(ast.Constant(value + 1), node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """An annotation stays as it is."""
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Bodies and defaults, not annotations or decorators."""
        node.args.defaults = [self.visit(one) for one in node.args.defaults]
        node.body = [self.visit(one) for one in node.body]
        return node


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a module."""
    text = path.read_text(encoding="utf-8")
    count = _Change(-1)
    count.visit(ast.parse(text))
    for number in range(count.seen):
        change = _Change(number)
        tree = ast.fix_missing_locations(change.visit(ast.parse(text)))
        if change.done is not None:
            line, what = change.done
            yield Mutant(str(path.relative_to(ROOT)), line, what, ast.unparse(tree))


def survives(mutant: Mutant, tests: Sequence[str], patience: float) -> bool:
    """Whether no test notices."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        place = Path(folder)
        for part in ("detector", "tools", "tests"):
            shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", place)
        (place / mutant.path).write_text(mutant.source, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, timeout=patience, check=False
            )
        except subprocess.TimeoutExpired:
            return False  # it goes on for ever, which is noticed
        return done.returncode == 0


def main() -> int:
    """Print the survivors and the score of each module; 1 below the floor."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=0, help="mutants of each module, 0 for all")
    parser.add_argument("--module", default="", help="only modules whose path has this in it")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    killed = tried = 0
    for room, tests in TESTS.items():
        paths = [
            path
            for path in sorted((ROOT / room).glob("*.py"))
            if path.name not in _SKIPPED and given.module in str(path)
        ]
        if not paths:
            continue
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", *tests],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        patience = 60 + 4 * (time.monotonic() - began)
        for path in paths:
            mutants = list(mutants_of(path))
            if given.sample and len(mutants) > given.sample:
                mutants = random.Random(given.seed).sample(mutants, given.sample)  # noqa: S311
            with ThreadPoolExecutor(given.jobs) as pool:
                lived = list(pool.map(lambda one, t=tests, p=patience: survives(one, t, p), mutants))
            for mutant in (one for one, alive in zip(mutants, lived, strict=True) if alive):
                print(f"  survived: {mutant.path}:{mutant.line} {mutant.what}")
            tried, killed = tried + len(mutants), killed + lived.count(False)
            share = lived.count(False) / len(lived) if lived else 1.0
            print(f"{share:7.1%}  {lived.count(False)}/{len(lived)}  {path.relative_to(ROOT)}", flush=True)
    score = killed / tried if tried else 1.0
    print(f"{score:7.1%}  {killed}/{tried}  together; the floor is {FLOOR:.0%}")
    return 0 if score >= FLOOR else 1


if __name__ == "__main__":
    sys.exit(main())
