# SPDX-License-Identifier: Apache-2.0
"""Takes packages of a Debian suite from the machine's own mirror without touching the machine's apt."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from detector.base.errors import HostError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN_LABEL = "Debian"


class Unavailable(HostError):
    """The mirror, or something on it, cannot be had."""


@dataclass(frozen=True, slots=True)
class Package:
    """One version of one binary package."""

    name: str
    version: str

    @property
    def folder(self) -> str:
        """A name for the unpacked package that changes with its version."""
        return f"{self.name}_{self.version.replace('~', '-')}"


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite of Debian seen through an apt configuration of its own, kept in `folder`."""

    name: str
    folder: Path

    def refresh(self) -> None:
        """Read the suite's package index.

        Raises:
            Unavailable: no mirror is known, or it does not answer.
        """
        (self.folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self.folder / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        signed_by = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        source = f"deb {signed_by}{mirror_address()} {self.name} main\n"
        self.sources.write_text(source)
        self._apt("apt-get", "update")

    def latest(self, name: str) -> Package:
        """The newest version of a package, following a meta package to the kernel it stands for.

        Raises:
            Unavailable: the suite has no such package.
        """
        record = self._apt("apt-cache", "show", "--no-all-versions", name)
        kernel = re.search(r"^Depends: (linux-image-[^ ,]+) \(= ([^)]+)\)", record, re.MULTILINE)
        if kernel:
            return Package(*kernel.groups())
        version = re.search(r"^Version: (\S+)", record, re.MULTILINE)
        if not version:
            raise Unavailable(f"{self.name} has no package {name}", "look at the machine's apt sources")
        return Package(name, version.group(1))

    def unpack(self, package: Package) -> Path:
        """The folder that holds the package's files, downloaded only when that version is not here yet."""
        target = self.folder / package.folder
        if target.is_dir():
            return target
        with _workspace(self.folder) as work:
            self._apt("apt-get", "download", f"{package.name}={package.version}", cwd=work)
            archive = next(work.glob("*.deb"))
            _run(["dpkg-deb", "--extract", str(archive), str(work / "files")])
            for older in self.folder.glob(f"{package.name}_*"):
                shutil.rmtree(older)
            (work / "files").rename(target)
        return target

    @property
    def sources(self) -> Path:
        """The only list of sources that this suite's apt reads."""
        return self.folder / "sources.list"

    def _apt(self, *command: str, cwd: Path | None = None) -> str:
        options = {
            "Dir::Etc::SourceList": self.sources,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": self.folder / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": self.folder,
            "APT::Sandbox::User": "root",  # apt's own user cannot look into a home folder
            "APT::Update::Error-Mode": "any",
            "APT::Update::Post-Invoke-Success": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
        }
        tool, *arguments = command
        settings = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return _run([tool, *settings, *arguments], cwd=cwd)


def mirror_address() -> str:
    """The address that this machine's apt takes Debian from.

    Raises:
        Unavailable: apt knows no mirror of Debian.
    """
    wanted = "$(REPO_URI) $(LABEL)"
    targets = _run(["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"]).splitlines()
    addresses = [
        address
        for address, _, label in (line.partition(" ") for line in targets)
        if label == DEBIAN_LABEL or address.rstrip("/").endswith("/debian")
    ]
    if not addresses:
        raise Unavailable("this machine's apt names no mirror of Debian", "add one to /etc/apt/sources.list")
    return addresses[0]


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """A folder beside the results, so that what is complete can be moved into place in one step."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="incoming-") as work:
        yield Path(work)


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, check=False, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not installed", "this needs a Debian machine") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise Unavailable(f"{command[0]} failed: {said[-1]}", "look at the machine's apt sources and network")
    return done.stdout
