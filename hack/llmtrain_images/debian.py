"""Debian packages: missing commands of this machine, and packages of another release.

The mirror is the one that apt is set up with. Packages of another release are unpacked into a
folder of the cache, so that apt's settings and the installed packages stay as they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtrain_devcluster.go_build.tools import Progress

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class DebianError(RuntimeError):
    """A package cannot be had; the message has the remedy."""


def install_missing(commands: Sequence[str], packages: Sequence[str], progress: Progress) -> None:
    """Install packages unless all the commands that they bring are there."""
    if all(shutil.which(command, path=_search_path()) for command in commands):
        return
    progress(f"installing {', '.join(packages)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages]
    if subprocess.run(install, env=environment, capture_output=True, check=False).returncode:
        # The package lists may be missing or older than the mirror.
        _run(["apt-get", "update", "-qq"])
        _run(install, environment)


def mirror() -> str:
    """Return the address of the Debian mirror that apt uses for this machine's release."""
    release = _os_release().get("VERSION_CODENAME", "")
    form = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)"
    for line in _run(["apt-get", "indextargets", "--format", form]).splitlines():
        address, suite, component = line.split("\t")
        if suite == release and component == "main":
            return address
    raise DebianError(
        f"apt has no source for {release or 'this system'}: install the programs by hand"
    )


@dataclass(frozen=True, slots=True)
class Packages:
    """Packages to unpack. An empty suite is the release of this machine."""

    names: tuple[str, ...]
    suite: str = ""


def unpack(packages: Packages, target: Path, workspace: Path) -> None:
    """Download packages without their dependencies and unpack them into `target`.

    `workspace` is a private folder for what is downloaded.
    """
    downloads = workspace / (packages.suite or "own")
    downloads.mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", *(_options_for(packages.suite, downloads) if packages.suite else ())]
    download = [*apt, "download", "-qq", *packages.names]
    if packages.suite or not _succeeds(download, downloads):
        _run([*apt, "update", "-qq"])
        _run(download, folder=downloads)
    found = sorted(downloads.glob("*.deb"))
    if len(found) != len(packages.names):
        raise DebianError(f"apt downloaded {len(found)} of {', '.join(packages.names)}")
    for package in found:
        _run(["dpkg-deb", "--extract", str(package), str(target)])


def _options_for(suite: str, folder: Path) -> list[str]:
    """Return options with which one call of apt sees only this release."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
    }
    return [f"-o{name}={value}" for name, value in settings.items()]


def _os_release() -> dict[str, str]:
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value.strip('"') for name, _, value in pairs}


def _search_path() -> str:
    """Return PATH with the folders of system programs, which a user's PATH may not have."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def _succeeds(command: Sequence[str], folder: Path) -> bool:
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return done.returncode == 0


def _run(
    command: Sequence[str], environment: dict[str, str] | None = None, folder: Path | None = None
) -> str:
    try:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise DebianError(
            f"{command[0]} is missing: this step needs a Debian system, or its programs on PATH"
        ) from None
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-10:])
        raise DebianError(f"{' '.join(command[:3])} failed with {done.returncode}:\n{tail}")
    return done.stdout
