"""The commands of the images, as containers on this machine."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.image_run import enter
from tests.support.paths import ROOT

USER = 1_000_650_000
"""A user as OpenShift assigns them, without an entry in passwd."""
PYTHON = "/mnt/python"
PACKAGES = "/mnt/packages"
CODE = "/mnt/code"
COMPILED = "/mnt/compiled"


@dataclass(frozen=True, slots=True)
class Container:
    """One container: its rooms, its mounts and its environment."""

    rooms: Sequence[str]
    """Folders of the repository with the packages of the image."""
    compiled: Path | None = None
    """Compiled Python files, which an image contains; None: those of this machine, if any."""
    binds: Mapping[str, Path] = field(default_factory=dict)
    """Folders and files of this machine, by their place in the container below /mnt or /run."""
    writable: Sequence[str] = ()
    """Places that can be written: a new tmpfs each, if nothing is bound there."""
    env: Mapping[str, str] = field(default_factory=dict)

    def start(self, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start `python` with these arguments. The process keeps the pid of this child."""
        binds = {
            PYTHON: sys.base_prefix,
            PACKAGES: sysconfig.get_path("purelib"),
            CODE: str(ROOT),
            **({COMPILED: str(self.compiled)} if self.compiled else {}),
            **{target: str(source) for target, source in self.binds.items()},
        }
        request = {
            "binds": binds,
            "writable": list(self.writable),
            "user": USER,
            "command": [self.python, *arguments],
            "env": {**self._image_env(), **self.env},
        }
        command = ["unshare", "--mount", "--propagation=private", "--"]
        command += [sys.executable, "-I", enter.__file__, json.dumps(request)]
        with log.open("ab") as out:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    @property
    def python(self) -> str:
        """The interpreter."""
        return f"{PYTHON}/bin/python{sys.version_info.major}.{sys.version_info.minor}"

    def _image_env(self) -> dict[str, str]:
        """Return the variables of the Dockerfile, and HOME as the runtime sets it."""
        _assert_unknown(USER)
        places = [*(f"{CODE}/{room}" for room in self.rooms), PACKAGES]
        return {
            "PATH": f"{PYTHON}/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": "/",
            # An interpreter with a shared library looks for it where it was installed.
            "LD_LIBRARY_PATH": f"{PYTHON}/lib",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(places),
            **({"PYTHONPYCACHEPREFIX": COMPILED} if self.compiled else {}),
        }


def compile_modules(rooms: Sequence[str], modules: str, folder: Path) -> Path:
    """Return a folder with the compiled files of some modules and of all that they import."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    maker = Container(rooms, folder, writable=[COMPILED], env={"PYTHONDONTWRITEBYTECODE": ""})
    log = folder.with_suffix(".log")
    process = maker.start(["-c", f"import {modules}"], log)
    assert process.wait(300) == 0, log.read_text()
    return folder


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a process has used, its ended children included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _assert_unknown(user: int) -> None:
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        return
    raise AssertionError(f"{name} has the user ID {user}")
