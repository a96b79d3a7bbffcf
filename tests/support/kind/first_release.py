"""The first release of the chart, from the history of the repository."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from llmtrain_core.images import OPERATOR_REPOSITORY
from llmtrain_images.build import build_operator
from llmtrain_images.docker_engine import DockerEngine
from tests.support.paths import ROOT

CHART = "charts/llmtrain"
FIRST_OPERATOR = f"{OPERATOR_REPOSITORY}:0.1.0"
"""The image that the first chart runs by default."""
_PACKAGE = ("README.md", "LICENSE", "pyproject.toml", "core", "operator", "trainer", "cli", "hack")
_BUILD = ("Dockerfile", "requirements", "hack/llmtrain_images/install.sh")
"""Files of today: how images are built. The dependencies of the operator are the same."""


def first_chart(folder: Path) -> Path:
    """Return the chart as it was in the first commit that has it."""
    _extract(folder, CHART)
    return folder / CHART


def build_first_operator(engine: DockerEngine, folder: Path) -> str:
    """Build the operator of that commit, and return the name of its image."""
    _extract(folder, *_PACKAGE)
    for name in _BUILD:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, target)
    return build_operator(engine, source=folder, name=FIRST_OPERATOR)


def _extract(folder: Path, *paths: str) -> None:
    chart = ("--diff-filter=A", "--format=%H", "--", f"{CHART}/Chart.yaml")
    commits = _git("log", *chart).decode().split()
    assert commits, "the history of the repository does not go back to the first chart"
    archive = _git("archive", commits[-1], *paths)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout
