"""Build the control plane's binaries from Go modules once, and cache them.

A binary is built into a private folder and renamed into the cache when it is complete, so an
interrupted build leaves only finished binaries, and the next build continues.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmtrain_devcluster.control_plane.golang import GoMissingError, find_go
from llmtrain_devcluster.paths import cache_root
from llmtrain_devcluster.processes import die_with_parent

KUBERNETES_VERSION = "1.37.2"
MODULES = Path(__file__).resolve().parent / "modules"
BUILD_FLAGS = ("-mod=readonly", "-trimpath", "-buildvcs=false", "-v")
REPORT_EVERY_SECONDS = 10.0
LOCK_TIMEOUT_SECONDS = 3600.0
KEPT_FOLDERS = 2

Progress = Callable[[str], None]


class BuildError(RuntimeError):
    """A binary could not be built; the message has the remedy."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One binary and the main package of the tool module that it is built from."""

    name: str
    module: str
    package: str


TOOLS = (
    Tool("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    Tool("kube-apiserver", "k8s", "k8s.io/kubernetes/cmd/kube-apiserver"),
    Tool("kube-controller-manager", "k8s", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    Tool("kube-scheduler", "k8s", "k8s.io/kubernetes/cmd/kube-scheduler"),
)


@dataclass(frozen=True, slots=True)
class Binaries:
    """The paths of the binaries."""

    etcd: Path
    apiserver: Path
    controller_manager: Path
    scheduler: Path


def linker_flags() -> str:
    """Return linker flags that set the version; otherwise /version is v0.0.0."""
    major, minor, _ = KUBERNETES_VERSION.split(".")
    stamps = {
        "gitVersion": f"v{KUBERNETES_VERSION}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "0" * 40,
        "buildDate": "1970-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    pairs = (f"-X {package}.{key}={value}" for package in packages for key, value in stamps.items())
    return " ".join(("-s", "-w", *pairs))


def build_hash(modules: Path = MODULES) -> str:
    """Return a hash of the modules and flags of the binaries."""
    digest = hashlib.sha256()
    for module in sorted({tool.module for tool in TOOLS}):
        for name in ("go.mod", "go.sum"):
            path = modules / module / name
            if not path.is_file():
                raise BuildError(
                    f"{path} is missing: install llmtrain again, or set "
                    "KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver, "
                    "kube-controller-manager and kube-scheduler"
                )
            digest.update(path.read_bytes())
    digest.update(" ".join((*BUILD_FLAGS, linker_flags())).encode())
    return digest.hexdigest()[:16]


def build_folder() -> Path:
    """Return the folder in the cache for the binaries of these modules."""
    return cache_root() / "k8s" / build_hash()


def find_binaries(progress: Progress | None = None) -> Binaries:
    """Return all binaries; build those that are neither in KUBEBUILDER_ASSETS nor in the cache.

    KUBEBUILDER_ASSETS often has etcd and the API server only; the others are built.
    """
    found: dict[str, Path] = {}
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    for tool in TOOLS:
        if assets and os.access(Path(assets) / tool.name, os.X_OK):
            found[tool.name] = Path(assets) / tool.name
    for required in ("etcd", "kube-apiserver") if assets else ():
        if required not in found:
            raise BuildError(f"KUBEBUILDER_ASSETS={assets} has no executable {required}: unset it")
    missing = [tool for tool in TOOLS if tool.name not in found]
    if missing:
        folder = build_folder()
        if any(not (folder / tool.name).exists() for tool in missing):
            _build(missing, folder, progress or _print_line)
        found.update({tool.name: folder / tool.name for tool in missing})
    return Binaries(*(found[tool.name] for tool in TOOLS))


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _build(tools: Sequence[Tool], folder: Path, progress: Progress) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with _build_lock(folder.parent / "build.lock", progress):
        todo = [tool for tool in tools if not (folder / tool.name).exists()]
        if not todo:
            return
        go = find_go(progress)
        progress(f"building {len(todo)} control plane binaries once, into {folder}")
        private = folder.parent / "partial"
        shutil.rmtree(private, ignore_errors=True)
        private.mkdir()
        started = time.monotonic()
        try:
            for number, tool in enumerate(todo, 1):
                label = f"[{number}/{len(todo)}] {tool.name}"
                _build_one(go, tool, private / tool.name, label, progress)
                (private / tool.name).rename(folder / tool.name)
        finally:
            shutil.rmtree(private, ignore_errors=True)
        for cache in _go_caches(folder.parent).values():
            shutil.rmtree(cache, ignore_errors=True)
        _prune(folder)
        progress(f"control plane binaries ready after {time.monotonic() - started:.0f} s")


def _go_caches(base: Path) -> dict[str, Path]:
    """Return Go's caches, from which an interrupted build continues."""
    return {"GOCACHE": base / "go-build", "GOMODCACHE": base / "go-mod"}


def _prune(newest: Path) -> None:
    """Remove old binaries except the newest ones, for a change between two versions."""
    folders = [path for path in newest.parent.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name)]
    others = [path for path in folders if path != newest]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[KEPT_FOLDERS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def _environment(target: Path) -> dict[str, str]:
    caches = _go_caches(target.parent.parent)
    return os.environ | {
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
        # Otherwise modules are read-only and cannot be removed. Not part of BUILD_FLAGS, because
        # it does not change the binaries.
        "GOFLAGS": "-modcacherw",
        "GOWORK": "off",
        "GOTMPDIR": str(target.parent),
        **{name: str(path) for name, path in caches.items()},
    }


def _build_one(go: Path, tool: Tool, target: Path, label: str, progress: Progress) -> None:
    command = [str(go), "build", *BUILD_FLAGS, "-ldflags", linker_flags(), "-o", str(target)]
    log = target.with_suffix(".log")
    started = reported = time.monotonic()
    progress(f"{label}: fetching modules and compiling")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, tool.package],
            cwd=MODULES / tool.module,
            env=_environment(target),
            stdout=output,
            stderr=output,
            start_new_session=True,
            # Go cleans up only after an interrupt.
            preexec_fn=partial(die_with_parent, signal.SIGINT),
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if time.monotonic() - reported >= REPORT_EVERY_SECONDS:
                    reported = time.monotonic()
                    progress(f"{label}: {_stage(log)}, {reported - started:.0f} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                process.wait()
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise BuildError(
            f"go build of {tool.name} failed with code {process.returncode}:\n{tail}\n"
            "remedy: fix the cause above (network, disk, Go version) and run it again"
        )
    progress(f"{label}: done in {time.monotonic() - started:.0f} s")


def _stage(log: Path) -> str:
    """Describe the progress: `go build -v` writes a line per compiled package."""
    lines = log.read_text(errors="replace").splitlines()
    fetched = sum(line.startswith("go: downloading") for line in lines)
    compiled = len(lines) - fetched
    last = lines[-1].rsplit("/", 1)[-1] if compiled else ""
    if not compiled:
        return f"{fetched} modules fetched" if fetched else "resolving packages"
    return f"{compiled} packages compiled (now {last or 'linking'})"


@contextmanager
def _build_lock(path: Path, progress: Progress) -> Iterator[None]:
    """Lock the cache for one build; the kernel frees the lock of a process that has ended."""
    with path.open("w") as lock:
        started = reported = time.monotonic()
        while time.monotonic() - started < LOCK_TIMEOUT_SECONDS:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - reported >= REPORT_EVERY_SECONDS:
                    reported = time.monotonic()
                    progress(f"waiting for another build, {reported - started:.0f} s")
                time.sleep(0.5)
        else:
            raise BuildError(f"another build holds {path} for too long: stop it and run again")
        yield


def main() -> int:
    """Build missing binaries and print their folder."""
    try:
        print(find_binaries().apiserver.parent)
    except (BuildError, GoMissingError) as error:
        _print_line(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _print_line("interrupted: the next build goes on with the binaries that are finished")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
