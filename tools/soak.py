# SPDX-License-Identifier: Apache-2.0
"""The service on a lab's relay for a long time: ``python -m tools.soak [SECONDS]``, as root.

Peers, rules, flows and scrapes come and go all the while. Memory, descriptors and threads of both processes
have to be at the end what they were when the first third was over. Prints one JSON object; status 1 where
something grew.
"""

from __future__ import annotations

import json
import random
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from detector.lab.relay import Lab
from detector.lab.service import LabService, start_service

SECONDS = 3600.0
PEERS = 12
_FLOWS = 240
_MAPPINGS = ("persistent", "numgen-random", "jhash")
_GROWTH = 1.1  # of memory, and besides
_SLACK = 6 << 20  # bytes
_FEW = 3  # descriptors or threads more

Sample = dict[str, int]


def sample(service: LabService) -> dict[str, Sample]:
    """Memory, descriptors and threads of both processes now."""
    sensor = service.process.pid
    children = Path(f"/proc/{sensor}/task/{sensor}/children").read_text().split()
    aggregator = next(
        one for one in children if b"daemon.aggregator" in Path(f"/proc/{one}/cmdline").read_bytes()
    )
    return {"sensor": _of(str(sensor)), "aggregator": _of(aggregator)}


def _of(process: str) -> Sample:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return {
        "bytes": pages * 4096,
        "descriptors": len(list(Path(f"/proc/{process}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{process}/task").iterdir())),
    }


def churn(lab: Lab, service: LabService, drawn: random.Random) -> None:
    """One round: flows, a peer that leaves and comes back, other rules now and then, scrapes, questions."""
    lab.send(lab.workload(_FLOWS, seed=drawn.randrange(1 << 30)))
    key = drawn.choice(lab.peers).public_key
    listed = lab.run(lab.relay, ["wg", "show", lab.wireguard_interface, "allowed-ips"]).stdout
    allowed = dict(line.split("\t") for line in listed.splitlines())
    with suppress(KeyError):
        was = allowed[key].replace(" ", ",")
        for now in ("", was):
            lab.run(lab.relay, ["wg", "set", lab.wireguard_interface, "peer", key, "allowed-ips", now])
    if not drawn.randrange(4):
        lab.apply(drawn.choice(_MAPPINGS))
    for path in ("/metrics", "/", "/-/ready", "/nowhere") * 10:
        with suppress(OSError):
            urllib.request.urlopen(service.metrics.removesuffix("/metrics") + path, timeout=10).read()  # noqa: S310
    service.status()


def grown(samples: list[dict[str, Sample]]) -> list[str]:
    """What is more at the end than when a third was over."""
    early, late = samples[len(samples) // 3], samples[-1]
    found = []
    for process, before in early.items():
        after = late[process]
        if after["bytes"] > before["bytes"] * _GROWTH + _SLACK:
            found.append(f"memory of the {process}: {before['bytes']} to {after['bytes']} bytes")
        found += [
            f"{what} of the {process}: {before[what]} to {after[what]}"
            for what in ("descriptors", "threads")
            if after[what] > before[what] + _FEW
        ]
    return found


def soak(seconds: float) -> dict[str, Any]:
    """Run it for so long, and six rounds at least."""
    samples: list[dict[str, Sample]] = []
    drawn = random.Random(7)  # noqa: S311
    with Lab(peers=PEERS) as lab:
        lab.apply(_MAPPINGS[0])
        with start_service(lab, port=0) as service:
            started = time.monotonic()
            while time.monotonic() - started < seconds or len(samples) < 6:
                churn(lab, service, drawn)
                samples.append(sample(service))
            errors = service.log.read_text().count('"level": "error"')
    return {
        "rounds": len(samples),
        "first": samples[0],
        "after a third": samples[len(samples) // 3],
        "last": samples[-1],
        "errors in the log": errors,
        "grown": grown(samples),
    }


if __name__ == "__main__":
    told = soak(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS)
    print(json.dumps(told, indent=1))
    sys.exit(bool(told["grown"]) or bool(told["errors in the log"]))
