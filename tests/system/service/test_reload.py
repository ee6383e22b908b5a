# SPDX-License-Identifier: Apache-2.0
"""SIGHUP takes over what can change, names what cannot, and a file that is wrong changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from detector.base.errors import UsageError
from detector.config.model import Config, Listen
from detector.config.reload import LIVE, Reload, SighupPipe, merge, read_config
from detector.lab.relay import Lab
from detector.lab.service import LabService, start_service

PATIENCE = 30.0


def test_what_can_change_is_taken_over() -> None:
    """Two live keys change, two others are named, and the configuration to go on with has the former only."""
    running = Config(relay="a")
    wanted = replace(running, interval=2.0, exits=("203.0.113.5",), hook="kprobe", listen=Listen(port=1))
    merged = merge(running, wanted)
    assert merged.config == replace(running, interval=2.0, exits=("203.0.113.5",))
    assert (merged.changed, merged.restart) == (("exits", "interval"), ("hook", "listen"))


def test_nothing_changes_where_nothing_differs() -> None:
    """The same file again is no change."""
    assert merge(Config(), Config()).changed == merge(Config(), Config()).restart == ()


def test_live_keys_are_keys() -> None:
    """Each key that is said to need no restart exists."""
    assert set(LIVE) <= set(Config.__dataclass_fields__)


def test_a_file_is_validated_elsewhere(tmp_path: Path) -> None:
    """The child's configuration is the file's, and the reading process has no validator in it."""
    path = tmp_path / "exitprint.yml"
    path.write_text("relay: other\ninterval: 3s\n")
    assert read_config(path) == replace(Config(), relay="other", interval=3.0)
    code = (
        f"import sys, pathlib; from detector.config.reload import read_config; "
        f"read_config(pathlib.Path({str(path)!r})); "
        "print([m for m in ['yaml'] if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("text", ["interval: 10", "hook: [", "\x00", "intervall: 3s", None])
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str | None) -> None:
    """The child's own words, with the file's name, and what to do next; never a traceback."""
    path = tmp_path / "exitprint.yml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=r"exitprint\.yml") as caught:
        read_config(path)
    assert "Traceback" not in str(caught.value)
    assert "send SIGHUP again" in caught.value.hint


def test_a_validator_that_does_not_run_is_no_wrong_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interpreter says that cannot find the code is not repeated."""
    monkeypatch.setattr(sys, "executable", "/usr/bin/false")
    with pytest.raises(UsageError, match="the validator does not run: it ended with 1"):
        read_config(tmp_path / "exitprint.yml")


def test_a_reload_goes_over_the_channel() -> None:
    """What the sensor says of a reload is what the aggregator understands."""
    told = Reload(good=False, at=12.5, restart=("hook",))
    assert Reload.of(json.loads(json.dumps(told.as_message()))) == told


def test_hangups_are_noted_and_wake() -> None:
    """However many come, the descriptor is readable and they are taken once."""
    before = signal.getsignal(signal.SIGHUP)
    try:
        hangup = SighupPipe()
        assert not hangup.taken()
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
        assert os.read(hangup.fileno(), 10) == bytes([signal.SIGHUP] * 3)
        assert [hangup.taken(), hangup.taken()] == [True, False]
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One relay."""
    with Lab(peers=3) as relay:
        relay.apply("jhash")
        yield relay


def change(service: LabService, **keys: Any) -> None:
    """Write other values into the service's file, and tell it."""
    path = service.log.parent / "exitprint.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))
    service.process.send_signal(signal.SIGHUP)


def until(service: LabService, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first status for which something holds."""
    limit = time.monotonic() + PATIENCE
    while not holds(status := service.status()):
        assert time.monotonic() < limit, status
        time.sleep(0.05)
    return status


def metric(service: LabService, name: str) -> float:
    """The value of a metric without labels."""
    with urllib.request.urlopen(service.metrics, timeout=10) as page:  # noqa: S310  (our own loopback)
        lines = page.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"exitprint_{name} "))


@pytest.mark.root
@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root")
def test_a_running_service_reloads(lab: Lab) -> None:
    """Good, wrong, good again: the name follows, the wrong file leaves all as it was, and all can see it."""
    with start_service(lab, port=0) as service:
        started = metric(service, "config_last_reload_success_timestamp_seconds")
        assert metric(service, "config_last_reload_successful") == 1
        change(service, relay="renamed", hook="kprobe", exits=["203.0.113.5-203.0.113.9"])
        status = until(service, lambda now: now["relay"] == "renamed" and now["epoch"]["number"] > 1)
        assert status["configuration"]["restart_needed"] == ["hook"]
        assert metric(service, "config_restart_needed") == 1
        good = metric(service, "config_last_reload_success_timestamp_seconds")
        assert good > started
        change(service, relay="again", interval="never")
        status = until(service, lambda now: not now["configuration"]["last_reload_successful"])
        assert status["relay"] == "renamed"
        assert metric(service, "config_last_reload_successful") == 0
        assert metric(service, "config_last_reload_success_timestamp_seconds") == good
        change(service, relay="again", interval="1s", hook="auto")
        until(service, lambda now: now["relay"] == "again" and not now["configuration"]["restart_needed"])
        said = [json.loads(line) for line in service.log.read_text().splitlines()]
    refused = next(line for line in said if line["event"].startswith("the configuration was not reloaded"))
    assert refused["level"] == "error"
    assert 'interval: "never" is not a duration' in refused["reason"]
    assert [line["keys"] for line in said if "need a restart" in line["event"]] == [["hook"]]
