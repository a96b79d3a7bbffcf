"""Which files a tier imports: all with a test of its marks, whatever else they have."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiers
from tests.support.marks import MARKS, can_select
from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

UNIT = "not (torch or cluster)"
SERIAL = "torch and serial and not exhaustive"


@pytest.mark.parametrize(
    ("expression", "text", "selected"),
    [
        ("cluster", "pytestmark = pytest.mark.cluster", True),
        ("cluster", "pytestmark = pytest.mark.torch", False),
        ("cluster", "unit = pytest.mark.unit\n@pytest.mark.cluster", True),
        ("cluster and not e2e", "pytestmark = [\n    pytest.mark.e2e,\n]\nmark.cluster", False),
        ("cluster and not e2e", "mark.e2e mark.cluster", True),
        (UNIT, "def test(): pass", True),
        (UNIT, "pytestmark = [pytest.mark.torch, pytest.mark.timeout(9)]", False),
        (UNIT, "@pytest.mark.torch\ndef test(): pass\ndef test_other(): pass", True),
        (UNIT, "    pytestmark = pytest.mark.torch", True),
        (SERIAL, "pytestmark = [pytest.mark.torch, pytest.mark.serial]", True),
        (SERIAL, "pytestmark = pytest.mark.torch\nmark.exhaustive", False),
        (SERIAL, "pytestmark = pytest.mark.torch\nmark.exhaustive mark.serial", True),
        ("hypothesis", "a mark that a plugin adds", True),
        ("torch and not timeout(timeout=9)", "pytestmark = pytest.mark.cluster", True),
    ],
)
def test_a_file_is_imported_if_a_test_of_it_can_be_selected(
    expression: str, text: str, selected: bool
) -> None:
    assert can_select(expression, text) is selected


def test_the_marks_are_those_of_the_configuration() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    assert {line.partition(":")[0] for line in options["ini_options"]["markers"]} == MARKS


def expressions() -> Iterator[str]:
    """Yield what `make test` selects."""
    for commands in tiers.TIERS.values():
        for command in commands:
            if "pytest" in command:
                yield command[command.index("-m", command.index("pytest")) + 1]


def test_every_test_file_is_imported_in_a_tier_and_no_tier_imports_all() -> None:
    files = {file: file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py")}
    wanted = list(expressions())
    assert len(wanted) > 8
    imported = {each: {f for f, text in files.items() if can_select(each, text)} for each in wanted}
    assert set().union(*imported.values()) == set(files)
    for each in wanted:
        assert 0 < len(imported[each]) < 0.7 * len(files), each


@pytest.mark.parametrize("word", [r"\badd_marker\b", r"\bgetattr\((pytest\.)?mark\b"])
def test_a_test_has_its_marks_from_its_own_file(word: str) -> None:
    own = Path(__file__)
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "hack").rglob("*.py")]
    for file in files:
        assert file == own or not re.search(word, file.read_text("utf-8")), file


def test_only_test_files_name_marks() -> None:
    """A mark that another module hands out would not be in the text of the test's file."""
    for file in (ROOT / "tests").rglob("*.py"):
        if not file.name.startswith(("test_", "bench_")):
            assert not re.search(r"@pytest\.mark\.|= \[?pytest\.mark\.", file.read_text()), file
