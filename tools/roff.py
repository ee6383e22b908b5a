# SPDX-License-Identifier: Apache-2.0
"""Manual pages in the language of man(7): the little of it that ours need."""

from __future__ import annotations


def header(name: str, section: int, source: str, summary: str) -> str:
    """The title and the section NAME; without a date, so that the same code gives the same page."""
    title = f'.TH {name.upper()} {section} "" "{source}" "exitprint manual"'
    line = escaped(f"{name} - {summary}", dash=True)
    # REUSE-IgnoreStart
    licence = '.\\" SPDX-License-Identifier: Apache-2.0'
    # REUSE-IgnoreEnd
    return f"{licence}\n{title}\n.SH NAME\n{line}\n"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f".PP\n{escaped(text)}\n"


def bold(text: str) -> str:
    """A line in bold."""
    return f".B {escaped(text)}"


def escaped(text: str, *, dash: bool = False) -> str:
    """Text that roff prints as it is.

    Args:
        text: the text.
        dash: its hyphens are dashes between a name and what it stands for.
    """
    text = text.replace("\\", "\\e")
    text = text.replace(" - ", " \\- ") if dash else text.replace("-", "\\-")
    for sign, name in (("…", "\\&..."), ("–", "\\(en"), ("→", "\\(->"), ("’", "\\(cq")):
        text = text.replace(sign, name)
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in text.split("\n"))
