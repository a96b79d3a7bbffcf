"""Wheels of locked packages, downloaded once, so that an image is built without a network."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llmtrain_devcluster.go_build.tools import Progress
from llmtrain_devcluster.paths import cache_root
from llmtrain_images.cache import mark_used

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = REPOSITORY / "requirements"
PYTHON = "3.11"
"""The version of Python in the images."""
NEWEST_GLIBC = 36
"""The minor version of the C library in the images, 2.36."""
_CUDA = re.compile(r"(nvidia-(?!ml-py)|cuda-|triton==)")


class WheelError(RuntimeError):
    """Packages could not be downloaded; the message says why."""


def without_cuda(lock: str) -> str:
    """Leave packages of CUDA out of the text of a lock."""
    entries = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.M)
    return "".join(entry for entry in entries if not _CUDA.match(entry))


def download(locks: Sequence[str], progress: Progress) -> Path:
    """Return a folder with the wheels of the locks' texts; download them if it is not there.

    pip takes them from the package index that this machine is set up with and checks their hashes.
    """
    text = "\n".join(locks)
    digest = hashlib.sha256(f"{PYTHON} {platform.machine()} {text}".encode()).hexdigest()[:16]
    target = cache_root() / "wheels" / digest
    if target.exists():
        return mark_used(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    progress(f"downloading wheels once, into {target}")
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        workspace = Path(name)
        (workspace / "lock.txt").write_text(text)
        wheels = workspace / "wheels"
        options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        done = subprocess.run(
            [
                sys.executable,
                find_pip(),
                "download",
                *options,
                *_platform(),
                "-d",
                wheels,
                "-r",
                "lock.txt",
            ],
            cwd=workspace,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise WheelError(f"pip download failed:\n{done.stderr[-2000:]}")
        wheels.rename(target)
    return mark_used(target)


def find_pip() -> Path:
    """Return the folder of the locked pip, installed once: a uv environment has none."""
    lock = LOCKS / "pip.txt"
    target = cache_root() / "pip" / hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        bootstrap = REPOSITORY / "hack" / "bootstrap.sh"
        found = subprocess.run([bootstrap], capture_output=True, text=True, check=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            draft = Path(name) / "pip"
            options = ["--quiet", "--no-deps", "--require-hashes", "--target", str(draft)]
            environment = os.environ | {"UV_CACHE_DIR": str(cache_root() / "uv")}
            install = [found.stdout.strip(), "pip", "install", "--python", sys.executable]
            subprocess.run([*install, *options, "-r", str(lock)], env=environment, check=True)
            draft.rename(target)
    return target / "pip"


def _platform() -> list[str]:
    """Return pip's options for the Python and the C library of the images."""
    machine = platform.machine()
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(NEWEST_GLIBC, 4, -1)]
    tags += [f"manylinux{year}_{machine}" for year in ("2014", "2010", "1")]
    abis = (f"cp{PYTHON.replace('.', '')}", "abi3", "none")
    return [
        *("--python-version", PYTHON, "--implementation", "cp"),
        *(word for tag in tags for word in ("--platform", tag)),
        *(word for abi in abis for word in ("--abi", abi)),
    ]
