"""A Docker engine of our own: `with docker_engine() as engine: engine.docker("version")`.

It has its own socket, data and configuration, so an engine of the machine stays untouched. Its
default network is none: a container reaches the outside only through a network that is made for
it. One engine runs at a time, because the firewall and the kernel's settings belong to the machine;
they are restored when it stops.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmtrain_devcluster.file_lock import file_lock
from llmtrain_devcluster.go_build.tools import Progress, print_progress
from llmtrain_devcluster.paths import cache_root
from llmtrain_devcluster.processes import die_with_parent, end_process, start_time
from llmtrain_images.debian import DebianError, Packages, install_missing, unpack
from llmtrain_images.machine_state import MachineState, record, restore

OLDEST_ENGINE = 23
"""Older engines need a capability that a container may not have."""
PACKAGES = (
    Packages(("docker.io", "docker-cli", "containerd", "docker-buildx"), suite="trixie"),
    # That of trixie needs a newer C library.
    Packages(("runc",)),
)
FIREWALL = ("iptables", "ip"), ("iptables", "iproute2")
"""Commands that an engine calls, and their packages."""
BUILD_CACHE = "8GB"
"""Twice what the images of one version need."""
READY_SECONDS = 60.0
STOP_SECONDS = 90.0
LOCK_SECONDS = 3600.0


class EngineError(RuntimeError):
    """The engine or one of its commands failed; the message says why."""


@dataclass(frozen=True, slots=True)
class DockerEngine:
    """A running engine. Programs that call `docker` find it with `environment()`."""

    socket: Path
    programs: Path
    """Folder with docker and dockerd, the first of PATH."""
    config: Path
    log: Path

    def environment(self) -> dict[str, str]:
        """Return the environment of a program that is to use this engine."""
        search = os.pathsep.join((str(self.programs), os.environ.get("PATH", os.defpath)))
        return os.environ | {
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(self.config),
            "PATH": search,
        }

    def docker(
        self, *arguments: str, check: bool = True, timeout: float = 600, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a docker command; raise EngineError if it fails and `check` is set.

        `text` is its standard input.
        """
        command = [str(self.programs / "docker"), *arguments]
        done = subprocess.run(
            command,
            env=self.environment(),
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
            raise EngineError(f"docker {' '.join(arguments[:3])} failed:\n{tail}")
        return done

    def has_image(self, name: str) -> bool:
        """Return True if the engine's store has an image."""
        return self.docker("image", "inspect", name, check=False).returncode == 0

    def remove_containers(self) -> None:
        """Remove all containers, and the networks that were made for them."""
        if found := self.docker("ps", "-aq").stdout.split():
            self.docker("rm", "--force", "--volumes", *found)
        self.docker("network", "prune", "--force")


@contextmanager
def docker_engine(
    progress: Progress = print_progress, data: Path | None = None
) -> Iterator[DockerEngine]:
    """Start an engine, and stop it and restore the machine at the end.

    Its images are kept in `data`, a folder of the cache by default. It starts and ends without
    containers and without networks of its own.
    """
    if os.geteuid() != 0:
        raise EngineError("a Docker engine needs root: run it as root")
    home = cache_root() / "docker"
    home.mkdir(parents=True, exist_ok=True)
    lock = home / "engine.lock"
    with file_lock(lock, LOCK_SECONDS, "another Docker engine", progress, EngineError):
        programs = find_programs(progress)
        install_missing(*FIREWALL, progress)
        _end_interrupted(home / "running.json")
        before = record()
        folder = Path(tempfile.mkdtemp(prefix="llmtrain-docker-"))
        try:
            process = _start(programs, data or home / "data", folder)
            running = {"pid": process.pid, "started": start_time(process.pid)}
            state = {"before": before.to_json(), "folder": str(folder)}
            (home / "running.json").write_text(json.dumps(running | state))
            engine = DockerEngine(folder / "socket", programs, folder / "config", folder / "log")
            try:
                _wait_ready(engine, process)
                engine.remove_containers()
                yield engine
                engine.remove_containers()
                engine.docker("image", "prune", "--force")
            finally:
                _stop(process)
        finally:
            _end_interrupted(home / "running.json", before)
            shutil.rmtree(folder, ignore_errors=True)


def find_programs(progress: Progress = print_progress) -> Path:
    """Return a folder with the engine's programs: those of PATH if they will do, or Debian's."""
    installed = shutil.which("dockerd")
    if installed and _major(installed) >= OLDEST_ENGINE and _beside(Path(installed)):
        return Path(installed).parent
    digest = hashlib.sha256(repr(PACKAGES).encode()).hexdigest()[:16]
    target = cache_root() / "docker" / "programs" / digest
    if not target.exists():
        progress(f"fetching a Docker engine once, into {target}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            try:
                for packages in PACKAGES:
                    unpack(packages, Path(name) / "root", Path(name) / "downloads")
            except DebianError as error:
                raise EngineError(f"no Docker engine: {error}") from None
            _collect(Path(name) / "root", Path(name) / "bin")
            (Path(name) / "bin").rename(target)
    return target


def _collect(root: Path, target: Path) -> None:
    """Move the programs of unpacked packages into one folder."""
    target.mkdir()
    for folder in ("usr/bin", "usr/sbin", "usr/libexec/docker/cli-plugins"):
        for path in (root / folder).iterdir():
            path.rename(target / path.name)


def _beside(dockerd: Path) -> bool:
    names = ("docker", "containerd", "runc")
    return all((dockerd.parent / name).exists() for name in names)


def _major(dockerd: str) -> int:
    text = subprocess.run([dockerd, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\d+)\.", text.stdout)
    return int(found[1]) if found else 0


def _start(programs: Path, data: Path, folder: Path) -> subprocess.Popen[bytes]:
    config = folder / "config"
    config.mkdir()
    if (programs / "docker-buildx").exists():
        (config / "cli-plugins").mkdir()
        (config / "cli-plugins" / "docker-buildx").symlink_to(programs / "docker-buildx")
    settings = {
        "data-root": str(data),
        "exec-root": str(folder / "exec"),
        "pidfile": str(folder / "pid"),
        "hosts": [f"unix://{folder / 'socket'}"],
        "storage-driver": "overlay2",
        "bridge": "none",
        "ip6tables": False,
        "builder": {"gc": {"enabled": True, "defaultKeepStorage": BUILD_CACHE}},
    }
    (folder / "daemon.json").write_text(json.dumps(settings))
    search = os.pathsep.join((str(programs), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [programs / "dockerd", "--config-file", folder / "daemon.json"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"PATH": search},
            start_new_session=True,
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )


def _wait_ready(engine: DockerEngine, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while engine.docker("version", check=False, timeout=READY_SECONDS).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(engine.log.read_text(errors="replace").splitlines()[-10:])
            raise EngineError(f"the Docker engine did not start:\n{tail}")
        time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_interrupted(path: Path, before: MachineState | None = None) -> None:
    """End an engine whose process died without a chance to restore the machine, and restore it."""
    if path.exists():
        running = json.loads(path.read_text())
        if running["started"] is not None:
            end_process(running["pid"], running["started"], STOP_SECONDS)
        before = before or MachineState.from_json(running["before"])
        _unmount(Path(running["folder"]))
        shutil.rmtree(running["folder"], ignore_errors=True)
    if before is not None:
        restore(before)
    path.unlink(missing_ok=True)


def _unmount(folder: Path) -> None:
    """Remove mounts that an engine left below its folder."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if Path(mount).is_relative_to(folder):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
