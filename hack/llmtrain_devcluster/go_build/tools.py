"""Build programs from tool modules of Go once, and cache them by the hash of the modules.

A program is built into a private folder and renamed into the cache when it is complete, so an
interrupted build leaves only finished programs, and the next build continues.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmtrain_devcluster.file_lock import REPORT_EVERY_SECONDS, file_lock
from llmtrain_devcluster.go_build.caches import go_caches, keep_go_caches
from llmtrain_devcluster.go_build.golang import GoMissingError, find_go
from llmtrain_devcluster.paths import cache_root
from llmtrain_devcluster.processes import die_with_parent

BUILD_FLAGS = ("-mod=readonly", "-trimpath", "-buildvcs=false", "-v")
LOCK_TIMEOUT_SECONDS = 3600.0
KEPT_FOLDERS = 2

Progress = Callable[[str], None]


class BuildError(RuntimeError):
    """A program could not be built; the message has the remedy."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One program and the main package of the tool module that it is built from."""

    name: str
    module: str
    package: str


@dataclass(frozen=True, slots=True)
class ModuleFolder:
    """A folder of a Go module, such as its manifests, that is copied beside the programs."""

    name: str
    tool: Tool
    """A program of the module."""
    module: str
    path: str


@dataclass(frozen=True, slots=True)
class ToolSet:
    """Programs that are cached together, because one of them is rarely needed alone."""

    title: str
    """What they are, in messages."""
    cache: str
    """Folder below the cache root."""
    modules: Path
    """Folder with the tool modules."""
    tools: tuple[Tool, ...]
    folders: tuple[ModuleFolder, ...] = ()
    linker_flags: str = "-s -w"
    flags: tuple[str, ...] = BUILD_FLAGS
    toolchain: str = "local"
    """GOTOOLCHAIN. `auto` downloads a newer Go if a module asks for one."""

    def build_hash(self) -> str:
        """Return a hash of the modules, of their own sources if any, and of the flags."""
        digest = hashlib.sha256()
        for module in sorted({tool.module for tool in self.tools}):
            for name in ("go.mod", "go.sum"):
                path = self.modules / module / name
                if not path.is_file():
                    raise BuildError(f"{path} is missing: install llmtrain again")
                digest.update(path.read_bytes())
            for path in sorted((self.modules / module).glob("*.go")):
                digest.update(path.read_bytes())
        digest.update(" ".join((*self.flags, self.linker_flags)).encode())
        for folder in self.folders:
            digest.update(f"{folder.name} {folder.module} {folder.path}".encode())
        return digest.hexdigest()[:16]

    def folder(self) -> Path:
        """Return the folder in the cache for the programs of these modules."""
        return cache_root() / self.cache / self.build_hash()

    def build(self, wanted: Sequence[Tool], progress: Progress) -> Path:
        """Build the wanted programs that the cache does not have; return their folder."""
        folder = self.folder()
        names = [*(tool.name for tool in wanted), *(part.name for part in self.folders)]
        if any(not (folder / name).exists() for name in names):
            with keep_go_caches():
                self._build(wanted, folder, progress)
        return folder

    def _build(self, wanted: Sequence[Tool], folder: Path, progress: Progress) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder.parent / "build.lock"
        with file_lock(path, LOCK_TIMEOUT_SECONDS, "another build", progress, BuildError):
            todo = [tool for tool in wanted if not (folder / tool.name).exists()]
            copied = [part for part in self.folders if not (folder / part.name).exists()]
            if not todo and not copied:
                return
            go = find_go(progress)
            progress(f"building {len(todo)} {self.title} binaries once, into {folder}")
            private = folder.parent / "partial"
            shutil.rmtree(private, ignore_errors=True)
            private.mkdir()
            started = time.monotonic()
            try:
                for number, tool in enumerate(todo, 1):
                    label = f"[{number}/{len(todo)}] {tool.name}"
                    self._build_one(go, tool, private / tool.name, label, progress)
                    (private / tool.name).rename(folder / tool.name)
                for part in copied:
                    self._copy(go, part, private / part.name)
                    (private / part.name).rename(folder / part.name)
            finally:
                shutil.rmtree(private, ignore_errors=True)
            _prune(folder)
            progress(f"{self.title} binaries ready after {time.monotonic() - started:.0f} s")

    def _build_one(
        self, go: Path, tool: Tool, target: Path, label: str, progress: Progress
    ) -> None:
        command = [str(go), "build", *self.flags, "-ldflags", self.linker_flags, "-o", str(target)]
        log = target.with_suffix(".log")
        started = reported = time.monotonic()
        progress(f"{label}: fetching modules and compiling")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, tool.package],
                cwd=self.modules / tool.module,
                env=environment(target, self.toolchain),
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

    def _copy(self, go: Path, folder: ModuleFolder, target: Path) -> None:
        """Copy a folder out of the module cache, which is removed after the build."""
        for step in (["mod", "download"], ["list", "-mod=readonly", "-m", "-f", "{{.Dir}}"]):
            done = subprocess.run(
                [str(go), *step, folder.module],
                cwd=self.modules / folder.tool.module,
                env=environment(target, self.toolchain),
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:
                raise BuildError(f"go {step[0]} {folder.module} failed:\n{done.stderr[-500:]}")
        shutil.copytree(Path(done.stdout.strip()) / folder.path, target)


def build_command(build: Callable[[], None]) -> int:
    """Run the build of a command line and return the exit code; say what an error means."""
    try:
        build()
    except (BuildError, GoMissingError) as error:
        print_progress(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        print_progress("interrupted: the next build goes on with the binaries that are finished")
        return 130
    return 0


def print_progress(line: str) -> None:
    """Print a line about the progress of a build to the standard error."""
    print(line, file=sys.stderr, flush=True)


def environment(target: Path, toolchain: str = "local") -> dict[str, str]:
    """Return the environment of a build into `target`, a file in a folder below the cache."""
    return os.environ | {
        "GOTOOLCHAIN": toolchain,
        "CGO_ENABLED": "0",
        # Otherwise modules are read-only and cannot be removed. Not part of BUILD_FLAGS, because
        # it does not change the binaries.
        "GOFLAGS": "-modcacherw",
        "GOWORK": "off",
        "GOTMPDIR": str(target.parent),
        **go_caches(),
    }


def _prune(newest: Path) -> None:
    """Remove old programs except the newest ones, for a change between two versions."""
    folders = [path for path in newest.parent.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name)]
    others = [path for path in folders if path != newest]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[KEPT_FOLDERS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def _stage(log: Path) -> str:
    """Describe the progress: `go build -v` writes a line per compiled package."""
    lines = log.read_text(errors="replace").splitlines()
    fetched = sum(line.startswith("go: downloading") for line in lines)
    compiled = len(lines) - fetched
    last = lines[-1].rsplit("/", 1)[-1] if compiled else ""
    if not compiled:
        return f"{fetched} modules fetched" if fetched else "resolving packages"
    return f"{compiled} packages compiled (now {last or 'linking'})"
