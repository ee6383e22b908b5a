# SPDX-License-Identifier: Apache-2.0
"""Which network namespace's rules count where services run: ours if one looks at it, else the only one."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.base.errors import UsageError
from detector.nat import place

OWN, OTHER, THIRD = 1, 2, 3


@pytest.mark.parametrize(
    ("sensors", "where", "said"),
    [
        ([], None, "no service runs here"),
        ([OWN], None, "where the service looks too"),
        ([OTHER], "/proc/100/ns/net", "of the running service"),
        ([OTHER, OTHER], "/proc/100/ns/net", "of the running service"),
        ([OTHER, OWN], None, "where the service looks too"),
        ([OTHER, OWN, THIRD], None, "where the service looks too"),
    ],
)
def test_the_namespace_that_counts(
    monkeypatch: pytest.MonkeyPatch, sensors: list[int], where: str | None, said: str
) -> None:
    """Whoever stands where a service looks means that one, whatever else runs on the host."""
    found = [(Path(f"/proc/{100 + number}/ns/net"), one) for number, one in enumerate(sensors)]
    monkeypatch.setattr(place, "_namespaces_of_sensors", lambda: iter(found))
    monkeypatch.setattr(place, "_identity", lambda _: OWN)
    path, text = place._running()
    assert (path, said in text) == (where and Path(where), True)


def test_several_services_elsewhere_are_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person has to say which."""
    found = [(Path("/proc/100/ns/net"), OTHER), (Path("/proc/101/ns/net"), THIRD)]
    monkeypatch.setattr(place, "_namespaces_of_sensors", lambda: iter(found))
    monkeypatch.setattr(place, "_identity", lambda _: OWN)
    with pytest.raises(UsageError, match="several services"):
        place._running()
