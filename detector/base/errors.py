# SPDX-License-Identifier: Apache-2.0
"""The one family of errors that a person can meet; each says what happened and what to do next."""

from __future__ import annotations

EXIT_FINDING = 1
EXIT_USAGE = 2
EXIT_HOST = 3


class ExitprintError(Exception):
    """Something that a person has to know about.

    Args:
        what: what happened and where, in one sentence, without a peer's key, address or destination.
        hint: what to do next, or an empty string.
    """

    status = EXIT_HOST

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what


class UsageError(ExitprintError):
    """The user's input (option, file, configuration) is wrong."""

    status = EXIT_USAGE


class HostError(ExitprintError):
    """This host cannot do what was asked."""

    status = EXIT_HOST


class NotYet(HostError):
    """Something that the service waits for (WireGuard, conntrack) is not there yet."""
