# SPDX-License-Identifier: Apache-2.0
"""Reads the configuration file: YAML, validated as a whole, every problem on a line of its own.

A line names the file, the line in it, the key, the value and what is expected. Only the command itself
imports this module; its child processes get the result as JSON (`detector.config.model`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from detector.config.document import ConfigError, Document, parse
from detector.config.guarded import UnsafeError, read_guarded
from detector.config.keys import read_keys
from detector.config.kinds import Problem, Reading, Where, parse_duration
from detector.config.model import Config

_EXAMPLE = "relay: se-sto-wg-001"


def load_config(path: Path) -> Config:
    """The configuration in a YAML file.

    Raises:
        ConfigError: it cannot be read, others may change it, or something in it is wrong.
    """
    try:
        text, _ = read_guarded(path)
    except UnsafeError as unsafe:
        raise ConfigError(path, [f"{path}: {unsafe}"]) from None
    document = parse(path, text, _EXAMPLE)
    reading = Reading()
    config = read_keys(Config, document.value, (), reading)
    if config is None:
        raise document.error(reading.problems)
    if wrong := list(_relations(config, document)):
        raise document.error(wrong)
    return config


def _relations(config: Config, document: Document) -> Iterator[Problem]:
    def at(key: str) -> Where:
        # One of the two keys is in the file: its line can be named.
        return (key,) if (key,) in document.lines else ("window",)

    for key, seconds in (("interval", config.interval), ("session_gap", config.session_gap)):
        if seconds >= config.window:
            yield Problem(at(key), f"{key} ({seconds:g}s) is not shorter than window ({config.window:g}s)")
    if config.socket_mode & 0o060 and config.inspect_group is None:
        yield Problem(
            ("inspect_mode",), "0660 is for a group: name it with inspect_group, or leave it at 0600"
        )
    if config.to_be_guarded and config.web_config_file is None:
        yield Problem(
            ("listen",),
            f'"{config.listen}" is not a loopback address, and whoever reaches /metrics can read it: '
            "ask for TLS and passwords with web_config_file, or set listen_beyond_loopback: true",
        )


__all__ = ["ConfigError", "load_config", "parse_duration"]
