# SPDX-License-Identifier: Apache-2.0
"""The forms in which flows are kept, and which of them some text has.

To add a form: if only the beginning of conntrack's lines is new, a line in `text.LINE_FORMS`; else a module
with a pattern that a piece of the form has, a name, and a generator that writes the same flows as conntrack's
own lines (`canonical.line`), and a line in `REWRITTEN`. Give it a test in tests/unit/conntrack/test_forms.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from detector.conntrack.forms import printflow, records, save, xml
from detector.conntrack.forms.text import LINE_FORMS, PLAIN, UNKNOWN_PREFIX, LineForm

__all__ = ["LINE_FORMS", "PLAIN", "Form", "LineForm", "recognise"]

_SAMPLE = 1 << 20
_LINES = 400
_FEW = 0.5  # of the sampled lines with a tuple, a form that matches less is not the file's
_NAMED = re.compile(rb"^[^\s:|][^:|\n]{0,254}?(?::(?:\d{1,9}[:-])?|[ ]*\|[ ]?)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A form that is read by writing the same flows as conntrack's lines.

    Attributes:
        name: for people.
        piece: what the form has at least once.
        rewrite: blocks of whole lines in, blocks of conntrack's lines out.
    """

    name: str
    piece: re.Pattern[bytes]
    rewrite: Callable[[Iterator[bytes]], Iterator[bytes]]


REWRITTEN = (
    Rewritten(records.JSON, records.JSON_LINE, records.rewrite_json),
    Rewritten(xml.NAME, xml.LINE, xml.rewrite),
    Rewritten(save.NAME, save.LINE, save.rewrite),
    Rewritten(printflow.NAME, printflow.LINE, printflow.rewrite),
    Rewritten(records.GPRINT, records.GPRINT_LINE, records.rewrite_gprint),
    Rewritten(records.EXPORT, records.EXPORT_LINE, records.rewrite_export),
)


@dataclass(frozen=True, slots=True)
class Form:
    """How a file is read: what is done to its blocks, one after the other, and how its lines begin.

    Attributes:
        names: of the steps and of the beginning, for people; none for conntrack's plain lines.
        steps: what the blocks go through.
        line: the beginning of the lines that come out.
    """

    names: tuple[str, ...]
    steps: tuple[Callable[[Iterator[bytes]], Iterator[bytes]], ...]
    line: LineForm

    def apply(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """The blocks after all steps."""
        for step in self.steps:
            blocks = step(blocks)
        return blocks


def recognise(sample: bytes) -> Form | None:
    """The form of a file that begins so; None where nothing in it is a flow.

    Args:
        sample: some whole lines.
    """
    sample = sample[:_SAMPLE]
    sample = sample[: sample.rfind(b"\n") + 1]
    return _line_form(sample) or _rewritten(sample) or _named(sample) or _unknown(sample)


def _line_form(sample: bytes) -> Form | None:
    lines = _with_flows(sample)
    best = max(LINE_FORMS, key=lambda form: form.matches(lines))
    found = best.matches(lines)
    if not found or found < _FEW * len(lines):
        return None
    return Form((best.name,) if best.name else (), (), best)


def _with_flows(sample: bytes) -> list[bytes]:
    """The first lines that have something of a flow."""
    lines: list[bytes] = []
    for found in re.finditer(rb"^[^\n]*[\t ]src=[^\n]*", sample, re.MULTILINE):
        lines.append(found[0])
        if len(lines) == _LINES:
            break
    return lines


def _rewritten(sample: bytes) -> Form | None:
    for form in REWRITTEN:
        if form.piece.search(sample):
            inner = recognise(b"".join(form.rewrite(iter([sample]))))
            if inner is not None:
                return Form((form.name, *inner.names), (form.rewrite, *inner.steps), inner.line)
    return None


def _named(sample: bytes) -> Form | None:
    """Lines with the name of a file before them, as grep and Docker print them."""
    bare = _without_names(sample)
    if bare == sample:
        return None
    inner = _line_form(bare) or _rewritten(bare)
    if inner is None:
        return None
    return Form(("a name before each line", *inner.names), (_strip_names, *inner.steps), inner.line)


def _without_names(block: bytes) -> bytes:
    return _NAMED.sub(b"", block)


def _strip_names(blocks: Iterator[bytes]) -> Iterator[bytes]:
    return map(_without_names, blocks)


def _unknown(sample: bytes) -> Form | None:
    lines: Sequence[bytes] = _with_flows(sample)
    if not UNKNOWN_PREFIX.matches(lines):
        return None
    return Form((UNKNOWN_PREFIX.name,), (), UNKNOWN_PREFIX)
