# SPDX-License-Identifier: Apache-2.0
"""A report on a terminal that knows no dash is a report with a plainer one."""

from __future__ import annotations

import io

import pytest

from detector.base.encodings import tolerate


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("latin-1", "a - b ... é ?"),
        ("ascii", "a - b ... ? ?"),
        ("iso8859-15", "a - b ... é ?"),
        ("utf-8", "a – b … é 字"),
    ],
)
def test_what_an_encoding_lacks_is_written_plainly(encoding: str, written: str) -> None:
    """Dashes and dots have plain cousins, everything else becomes a question mark."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    tolerate(stream, io.StringIO())
    stream.write("a – b … é 字")
    stream.seek(0)
    assert stream.read() == written
