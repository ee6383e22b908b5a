# SPDX-License-Identifier: Apache-2.0
"""Makes docs/transcript.md: from a firing alert to the rule at fault and the proof of the fix, all real.

``python -m tests.system.client.transcript [FILE]`` as root: a lab's relay with the service, Prometheus and
Alertmanager. Every block is what the command printed; only long maps are shortened.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from detector.lab.monitoring import Alert
from detector.lab.namespaces import Namespace
from detector.lab.stack import BAD, PAGE, Scene, scene

ROOT = Path(__file__).parents[3]
FACTOR = 60.0
_WIDTH = "80"
_ELEMENTS = re.compile(r"^\s+\d+ : \S+, \d+ : .*$")
_ELEMENTS_SHOWN = 2

_START = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
# From a page to the proof of the fix

What the person on call sees and types. It happened on a lab's relay, with Debian's Prometheus and
Alertmanager, the project's own rules, and a minute of a deployment in {minute:g} s; `make transcript` does it
again and writes this page. Nothing in it was edited; the elements of long maps are left out.

## The page arrives

The rules of the relay `lab` were changed. Some minutes later the pager has this:

"""
_REMEDY = (
    "exitprint audit --json | python3 -c '"
    'import json, sys\nfor rule in json.load(sys.stdin)["rules"]:\n    if rule["leaks"]:\n'
    '        print("flush chain", *rule["where"].split()[:3])\n        print(rule["remedy"]["text"])'
    "' > remedy.nft"
)


class Terminal:
    """A shell on the relay whose commands and answers become blocks of the page."""

    def __init__(self, relay: Namespace, socket: Path, folder: Path) -> None:
        self._relay = relay
        self._folder = folder
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | {
            "EXITPRINT_SOCKET": str(socket),
            "PATH": programs,
            "COLUMNS": _WIDTH,
            "NO_COLOR": "1",
        }

    def shows(self, *commands: str, status: int = 0) -> str:
        """A block with commands, what they print, and the exit status of the last where it is not 0.

        Raises:
            RuntimeError: the last one ended otherwise.
        """
        lines = ["```"]
        for number, command in enumerate(commands, 1):
            done = self._run(command)
            lines.append("relay# " + command.replace("\n", "\n> "))
            lines += _shortened(done.stdout + done.stderr)
            if done.returncode != (status if number == len(commands) else 0):
                raise RuntimeError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        if status:
            lines += ["relay# echo $?", str(status)]
        return "\n".join([*lines, "```", "", ""])

    def says(self, command: str) -> str:
        """What a command prints, not shown."""
        return self._run(command).stdout.strip()

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self._relay.name, "bash", "-c", command],
            cwd=self._folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        """`exitprint watch` meanwhile; its lines are there after the block."""
        lines: list[str] = []
        with tempfile.TemporaryFile("w+") as file:
            watch = subprocess.Popen(
                [sys.executable, "-m", "detector", "watch"], cwd=ROOT, env=self.environment, stdout=file
            )
            try:
                yield lines
            finally:
                watch.terminate()
                watch.wait()
            file.seek(0)
            lines += file.read().splitlines()


def _shortened(text: str) -> list[str]:
    """The lines, with the elements of a map from the third line of them on left out."""
    lines: list[str] = []
    elements = 0
    for line in (one.rstrip() for one in text.rstrip().splitlines()):
        elements = elements + 1 if _ELEMENTS.match(line) else 0
        if elements <= _ELEMENTS_SHOWN:
            lines.append(line)
        elif elements == _ELEMENTS_SHOWN + 1:
            lines.append(f"{line[: len(line) - len(line.lstrip())]}...")
    return lines


def page(factor: float = FACTOR) -> str:
    """Play it once; the whole page.

    Raises:
        HostError: this host cannot, or an alert that must come does not.
    """
    with scene(factor) as played, tempfile.TemporaryDirectory(prefix="exitprint-transcript-") as folder:
        played.send()
        played.judged("pinned")
        played.remap(BAD)
        terminal = Terminal(played.lab.relay, played.service.socket, Path(folder))
        return "".join(_story(played, terminal, factor))


def _story(played: Scene, terminal: Terminal, factor: float) -> Iterator[str]:
    yield _START.format(minute=60 / factor)
    yield _message(played.received(PAGE, firing=True))
    yield from _diagnosis(terminal)
    yield "## The mitigation\n\n"
    yield (
        "The runbook says: write what the audit wrote. Each of these two chains holds that one rule; where\n"
        "there are others, `nft replace rule ... handle ...` changes one. `nft -c` tries the file first.\n\n"
    )
    with terminal.watching() as lines:
        played.watch.wait("the watch", lambda: terminal.says("exitprint status"))
        yield terminal.shows(_REMEDY, "nft -c -f remedy.nft && nft -f remedy.nft")
        played.watch.wait("a new epoch", lambda: _epoch(terminal) > 2)
        played.send()
        played.judged("pinned")
        yield from _proof(terminal)
        resolved = _message(played.received(PAGE, firing=False))
    yield "In another window `exitprint watch` was running; through a pipe it has a line for each change:\n\n"
    yield "\n".join(["```", "relay# exitprint watch | tee watch.log", *lines, "```", "", ""])
    yield "## The page is resolved\n\n"
    yield resolved
    yield "Resolved alone proves nothing; the audit, the new epoch and the verdict above do.\n"


def _diagnosis(terminal: Terminal) -> Iterator[str]:
    yield (
        "## The diagnosis\n\nThe runbook that `runbook_url` points to is\n"
        f"[{PAGE}](../deploy/runbooks/{PAGE}.md).\n"
        "Its first command: is it leaking, why, since when, what to do?\n\n"
    )
    yield terminal.shows("exitprint status")
    yield "What changed, and when?\n\n"
    yield terminal.shows("exitprint history")
    yield "Which rule is at fault, and what to write instead?\n\n"
    yield terminal.shows("exitprint audit", status=1)
    yield "Whom does it concern? Peers have pseudonyms, which live as long as the service.\n\n"
    yield terminal.shows("exitprint peers --limit 5 --family ipv4")
    first = json.loads(terminal.says("exitprint peers --limit 1 --json"))["peers"][0]["pseudonym"]
    yield terminal.shows(f"exitprint explain {first}")


def _proof(terminal: Terminal) -> Iterator[str]:
    yield "## The proof\n\nNo rule leaks any more, and the exit status says so:\n\n"
    yield terminal.shows("exitprint audit > audit.txt; echo $?; grep -E '^[A-Za-z]+  |source-NAT' audit.txt")
    yield "And what peers get is another mapping, in a new epoch, with enough new flows to judge it:\n\n"
    yield terminal.shows("exitprint status")
    yield (
        "`pinned` is a ticket and no page: each peer keeps an exit on this relay, by a secret that no other\n"
        "relay has. Where that is not wanted, the audit names `numgen random` as the alternative.\n\n"
    )


def _epoch(terminal: Terminal) -> int:
    return int(json.loads(terminal.says("exitprint status --json"))["epoch"]["number"])


def _message(alert: Alert) -> str:
    state = "FIRING" if alert.firing else "RESOLVED"
    labels: dict[str, Any] = {key: value for key, value in alert.labels.items() if key != "alertname"}
    shown = " ".join(f"{key}={value}" for key, value in sorted(labels.items()))
    said = [f"  {key}: {value}" for key, value in sorted(alert.annotations.items())]
    return "\n".join(["```", f"[{state}] {alert.name}", f"  {shown}", *said, "```", "", ""])


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=ROOT / "docs" / "transcript.md")
def main(file: Path) -> None:
    """Play it and write FILE."""
    file.write_text(page())


if __name__ == "__main__":
    main()
