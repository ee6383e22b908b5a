# SPDX-License-Identifier: Apache-2.0
"""Readers of what others write, with what nobody would write; a longer run is `make fuzz`."""

from __future__ import annotations

import pytest

from tools import fuzz


@pytest.mark.parametrize("name", fuzz.READERS)
def test_no_input_makes_a_reader_stumble(name: str) -> None:
    """Every input is read or refused, in time and in little memory."""
    assert fuzz.fuzz(name, 0.0, seed=1, least=400) >= 400


def test_what_a_reader_must_not_do_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is not ours, and an input that takes too long."""

    def fragile(data: bytes) -> None:
        if b"G" not in data:
            raise KeyError

    monkeypatch.setitem(fuzz.READERS, "request", fragile)
    with pytest.raises(fuzz.Finding, match="KeyError"):
        fuzz.fuzz("request", 0.0, seed=1, least=5000)
    monkeypatch.setitem(fuzz.READERS, "request", lambda _: None)
    monkeypatch.setattr(fuzz, "MAX_SECONDS", -1.0)
    with pytest.raises(fuzz.Finding, match="s on"):
        fuzz.fuzz("request", 0.0, seed=1)
