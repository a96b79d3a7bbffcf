"""The Python environment of the trainer image: that of this process, at paths that pods can see.

A pod has its own /tmp. Code that lies there on the host is mounted elsewhere in the pod, so that
the pod's /tmp stays empty.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtrain_devcluster.process_node.sandbox import OWN_MOUNTS, Mount

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
POD_ROOT = Path("/opt/llmtrain-devcluster")
PACKAGES = (
    "llmtrain_core",
    "llmtrain_operator",
    "llmtrain_trainer",
    "llmtrain_cli",
    "llmtrain_devcluster",
)


@dataclass(frozen=True, slots=True)
class PythonEnvironment:
    """Environment variables that select the Python, and the mounts that it needs."""

    env: Mapping[str, str]
    mounts: Sequence[Mount] = ()


@dataclass(frozen=True, slots=True)
class HostPython:
    """A Python environment on the host."""

    prefix: Path
    executable: Path
    """The interpreter outside of any virtual environment."""
    base_prefix: Path
    packages: Sequence[Path]
    """The folders that hold this repository's packages."""

    @classmethod
    def current(cls) -> HostPython:
        """Return the environment of this process."""
        specs = (importlib.util.find_spec(name) for name in PACKAGES)
        origins = [Path(spec.origin) for spec in specs if spec and spec.origin]
        packages = dict.fromkeys(origin.parents[1] for origin in origins)
        executable = Path(sys.executable).resolve()
        return cls(Path(sys.prefix), executable, Path(sys.base_prefix), list(packages))


def pod_environment(host: HostPython, folder: Path) -> PythonEnvironment:
    """Return the environment as pods see it; write what they need for it to `folder`."""
    hidden = _outermost(path for path in _roots(host) if _is_hidden(path))
    if not hidden:
        return PythonEnvironment({"PATH": _search_path(host.prefix)})
    mounts = [Mount(str(path), str(POD_ROOT / str(i)), True) for i, path in enumerate(hidden)]
    prefix = POD_ROOT / "venv"
    _write_venv(host, folder, prefix, mounts)
    mounts.append(Mount(str(folder), str(prefix), True))
    packages = os.pathsep.join(str(_in_pod(path, mounts)) for path in host.packages)
    return PythonEnvironment({"PATH": _search_path(prefix), "PYTHONPATH": packages}, mounts)


def _roots(host: HostPython) -> Iterable[Path]:
    return (host.prefix, host.base_prefix, *host.packages)


def _search_path(prefix: Path) -> str:
    return os.pathsep.join((str(prefix / "bin"), SYSTEM_PATH))


def _is_hidden(path: Path) -> bool:
    """Return True if pods have their own counterpart of the folder that the path lies in."""
    places = {path, path.resolve()}
    return any(place.is_relative_to(own) for place in places for own in OWN_MOUNTS)


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Return the paths, without those inside another one."""
    unique = set(paths)
    return sorted(path for path in unique if unique.isdisjoint(path.parents))


def _in_pod(path: Path, mounts: Iterable[Mount]) -> Path:
    """Return the path at which a pod sees a path of the host."""
    for mount in mounts:
        if path.is_relative_to(mount.source):
            return mount.target / path.relative_to(mount.source)
    return path


def _write_venv(host: HostPython, folder: Path, prefix: Path, mounts: Sequence[Mount]) -> None:
    """Write a virtual environment that refers to the libraries and programs of the host's.

    Its scripts start with the interpreter's path in the pod. One that exists stays: pods that run
    may use it while the nodes are started again.
    """
    if folder.exists():
        return
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    programs = draft / "bin"
    programs.mkdir(parents=True)
    interpreter = _in_pod(host.executable, mounts)
    version = f"version = {sys.version_info.major}.{sys.version_info.minor}"
    (draft / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\n{version}\n")
    for name in ("lib", "lib64"):
        if (host.prefix / name).is_dir():
            (draft / name).symlink_to(_in_pod(host.prefix / name, mounts))
    for program in sorted((host.prefix / "bin").iterdir()):
        target = programs / program.name
        if program.resolve() == host.executable:
            target.symlink_to(interpreter)
        elif (script := _script(program, host.prefix)) is not None:
            target.write_bytes(f"#!{prefix}/bin/python\n".encode() + script)
            target.chmod(0o755)
        else:
            target.symlink_to(_in_pod(program, mounts))
    draft.rename(folder)


def _script(program: Path, prefix: Path) -> bytes | None:
    """Return a Python script without the lines that start it, or None for any other program.

    Installers start a script with the interpreter's path, or with a shell that executes it if the
    path is long or has spaces.
    """
    if not program.is_file():
        return None
    with program.open("rb") as file:
        interpreter = f"{prefix}/bin/python".encode()
        first = file.readline(1024)
        if first.startswith(b"#!" + interpreter):
            return file.read()
        second, _end = file.readline(4096), file.readline(64)
        if first == b"#!/bin/sh\n" and second.startswith(b"'''exec' ") and interpreter in second:
            return file.read()
    return None
