"""Pods have an empty /tmp, and the trainer's code, also where the checkout lies below /tmp."""

import os
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain_devcluster.process_node.python_environment import HostPython, pod_environment
from llmtrain_devcluster.process_node.sandbox import Sandbox

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
SOURCES = ("core", "operator", "trainer", "cli", "hack")


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A copy of the sources below /tmp, with a virtual environment inside."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="llmtrain-checkout-"))
    try:
        for source in (*SOURCES, "tests"):
            shutil.copytree(
                ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy(ROOT / "pyproject.toml", folder)
        make_venv(folder)
        yield folder
    finally:
        shutil.rmtree(folder)


def make_venv(checkout: Path) -> None:
    """Make .venv with this environment's libraries and an editable install of the checkout."""
    venv = checkout / ".venv"
    command = [sys.executable, "-m", "venv", "--without-pip", str(venv)]
    subprocess.run(command, check=True, timeout=120)
    (packages,) = (venv / "lib").glob("python*/site-packages")
    sources = "".join(f"{checkout / source}\n" for source in SOURCES)
    libraries = "".join(f"{path}\n" for path in site.getsitepackages())
    (packages / "_llmtrain.pth").write_text(sources + libraries)
    text = "from llmtrain_cli.main import run\nrun()\n"
    starts = {
        "llmtrain": f"#!{venv}/bin/python\n",
        # as installers start a script if the path is too long for the kernel
        "llmtrain-long": f"#!/bin/sh\n'''exec' '{venv}/bin/python' \"$0\" \"$@\"\n' '''\n",
    }
    for name, start in starts.items():
        program = venv / "bin" / name
        program.write_text(start + text)
        program.chmod(0o755)


def test_everything_visible_needs_no_mount(tmp_path: Path) -> None:
    host = HostPython(Path("/usr"), Path("/usr/bin/python3"), Path("/usr"), [Path("/srv/core")])
    environment = pod_environment(host, tmp_path / "pod-python")
    assert environment.env["PATH"].startswith("/usr/bin:")
    assert "PYTHONPATH" not in environment.env
    assert environment.mounts == ()
    assert not (tmp_path / "pod-python").exists()


def test_code_below_tmp_is_mounted_elsewhere(checkout: Path, tmp_path: Path) -> None:
    executable = (checkout / ".venv/bin/python").resolve()
    packages = [checkout / source for source in SOURCES]
    host = HostPython(checkout / ".venv", executable, Path(sys.base_prefix), packages)
    # The nodes of a cluster can be started again.
    first = pod_environment(host, tmp_path / "pod-python")
    environment = pod_environment(host, tmp_path / "pod-python")
    assert environment == first
    script = (
        "ls /tmp | wc -l; llmtrain layout --tensor 2 | head -1;"
        "llmtrain-long layout --tensor 2 | head -1;"
        "python -c 'import sys, llmtrain_core, pydantic; print(sys.prefix, llmtrain_core.__file__)'"
    )
    (tmp_path / "scratch").mkdir()
    sandbox = Sandbox(
        command=["sh", "-c", script],
        env=environment.env,
        work_dir="/",
        hostname="box",
        scratch=str(tmp_path / "scratch"),
        mounts=environment.mounts,
    )
    done = subprocess.run(
        [sys.executable, "-m", "llmtrain_devcluster.process_node.sandbox", str(os.getpid())],
        input=sandbox.to_json(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    empty, layout, long, python = done.stdout.splitlines()
    assert (empty, done.stderr) == ("0", "")
    assert layout.startswith("tp2")
    assert long == layout
    prefix, module = python.split()
    assert prefix == "/opt/llmtrain-devcluster/venv"
    assert module.startswith("/opt/llmtrain-devcluster/")


def test_pods_of_a_checkout_below_tmp(checkout: Path) -> None:
    """The tests of a pod's surroundings, among them those of its /tmp, pass from there."""
    tests = "tests/devcluster/process_nodes/test_surroundings.py"
    done = subprocess.run(
        [checkout / ".venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", tests],
        cwd=checkout,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
