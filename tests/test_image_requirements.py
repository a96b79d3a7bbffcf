"""What an image installs is all that its programs need: everything else is made unimportable."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

BLOCK = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_present(name, path=None, target=None):
    return None if name.partition(".")[0] in ABSENT else find(name, path, target)
PathFinder.find_spec = find_present
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def absent(*locks: str) -> set[str]:
    """Return the installed packages that an image with these locks does not have."""
    text = "".join((ROOT / "requirements" / f"{lock}.txt").read_text() for lock in locks)
    locked = {normal(name) for name in re.findall(r"^([A-Za-z0-9_.-]+)==", text, re.M)}
    return {
        package
        for package, names in packages_distributions().items()
        if not {normal(name) for name in names} & (locked | {"llmtrain"})
    }


def run(program: str, *locks: str) -> subprocess.CompletedProcess[str]:
    code = BLOCK.replace("ABSENT", repr(absent(*locks))) + program
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


CLI = "sys.argv[:] = ['llmtrain', {}]\nfrom llmtrain_cli.main import run\nrun()"


@pytest.mark.parametrize(
    "program",
    [
        "import llmtrain_trainer.launch, llmtrain_trainer.worker.main,"
        " llmtrain_trainer.metrics.registry",
        CLI.format("'data', 'prepare', '--help'"),
        CLI.format("'run', '--help'"),
        CLI.format("'layout', '--tensor', '2'"),
    ],
    ids=["launch", "data", "run", "layout"],
)
def test_the_trainer_image_runs(program: str) -> None:
    found = run(program, "trainer", "corpus")
    assert found.returncode == 0, found.stderr


def test_the_trainer_image_prepares_data(tmp_path: Path) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for number in range(30):
        text = " ".join(f"word{(number + i * i) % 89}" for i in range(200))
        (source / f"{number}.txt").write_text(text)
    arguments = [
        "data",
        "prepare",
        "--to",
        str(tmp_path / "out"),
        "--vocab-size",
        "300",
        "--held-out",
        "0.2",
        "--source",
        f"one={source.as_uri()}",
    ]
    found = run(CLI.format(", ".join(map(repr, arguments))), "trainer", "corpus")
    assert found.returncode == 0, found.stderr


def test_the_operator_image_runs_and_has_no_torch() -> None:
    assert {"torch", "typer"} <= absent("operator")
    found = run("import llmtrain_operator.handlers", "operator")
    assert found.returncode == 0, found.stderr


def test_the_trainer_image_has_no_cluster_client() -> None:
    assert {"kopf", "kubernetes"} <= absent("trainer", "corpus")
