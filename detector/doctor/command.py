# SPDX-License-Identifier: Apache-2.0
"""`exitprint doctor`: one line a check, and under each that needs it the mend."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from detector.base.answers import SCHEMA_VERSION
from detector.base.errors import EXIT_HOST
from detector.config.file import load_config
from detector.doctor import attach, kernel, model, network, software
from detector.doctor.check import Check, Finding, Host, Status, examine

CHECKS: tuple[tuple[str, Check], ...] = (
    ("capabilities", kernel.capabilities),
    ("btf", kernel.btf),
    ("bcc", software.bcc),
    ("lockdown", kernel.lockdown),
    ("perf events", kernel.perf_event_paranoid),
    ("unprivileged bpf", kernel.unprivileged_bpf),
    ("hooks", attach.hooks),
    ("conntrack", network.conntrack),
    ("nat tools", software.nat_tools),
    ("namespace", network.network_namespace),
    ("wireguard", network.wireguard),
    ("model", model.model),
    ("user", software.user),
    ("canaries", software.canaries),
)

_STYLES = {Status.OK: "green", Status.NOTE: "yellow", Status.FAIL: "bold red"}


@click.command("doctor")
@click.option("--config", "file", type=click.Path(path_type=Path), help="Check for this configuration.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(file: Path | None, as_json: bool) -> None:
    """Check whether this host can run the service, and say how to mend what is missing."""
    host = Host(load_config(file)) if file else Host()
    findings = examine(host, CHECKS)
    click.echo(to_json(findings)) if as_json else show(findings, Console(soft_wrap=True, highlight=False))
    if not can_run(findings):
        sys.exit(EXIT_HOST)


def can_run(findings: Sequence[tuple[str, Finding]]) -> bool:
    """Whether nothing keeps the service from running."""
    return all(finding.status is not Status.FAIL for _, finding in findings)


def to_json(findings: Sequence[tuple[str, Finding]]) -> str:
    """The findings as one object."""
    checks = [{"check": name, "status": f.status, "text": f.text, "mend": f.mend} for name, f in findings]
    return json.dumps({"schema_version": SCHEMA_VERSION, "can_run": can_run(findings), "checks": checks})


def show(findings: Sequence[tuple[str, Finding]], console: Console) -> None:
    """Print the findings for people."""
    width = max(len(name) for name, _ in findings)
    for name, finding in findings:
        style = _STYLES[finding.status]
        console.print(Text.assemble((f"{finding.status:<5}", style), f"{name:<{width}}  {finding.text}"))
        if finding.mend and finding.status is not Status.OK:
            console.print(Text.assemble(" " * (width + 7), ("mend: ", style), finding.mend))
    if can_run(findings):
        console.print(Text("The service can run on this host.", "green"))
    else:
        failed = sum(finding.status is Status.FAIL for _, finding in findings)
        console.print(Text(f"The service cannot run on this host: {failed} to mend.", "bold red"))
