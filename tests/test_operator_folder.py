"""The folder `operator/` must never shadow the standard library's module of that name."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.unit


def test_operator_is_the_standard_library_s() -> None:
    """Ask a fresh interpreter at the repository root, where the folder is on its path."""
    code = "import operator, collections; print(operator.__file__); print(operator.eq(1, 1))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    path, equal = done.stdout.split()
    assert Path(path).parent == Path(sysconfig.get_paths()["stdlib"])
    assert equal == "True"


@pytest.mark.parametrize(
    "room", ["operator", "trainer", "core", "cli", "hack", "tests", "tests/operator"]
)
def test_rooms_are_plain_folders(room: str) -> None:
    assert (ROOT / room).is_dir()
    assert not (ROOT / room / "__init__.py").exists()
