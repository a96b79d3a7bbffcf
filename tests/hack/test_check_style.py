"""hack/check_style.py finds a planted example of each rule, and accepts a clean tree."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "hack" / "check_style.py"
CLEAN = '"""A module."""\n\n\nclass Reader:\n    """Reads."""\n'
LONG = "def long() -> int:\n" + "    a = 1\n" * 50 + "    return a\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shutil.copytree(ROOT / "tests" / "style", tmp_path / "tests" / "style")
    write(tmp_path, "core/llmtrain_core/clean.py", CLEAN)
    write(tmp_path, ".gitignore", "ignored/\n")
    return tmp_path


def write(repository: Path, name: str, text: str) -> None:
    path = repository / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def check(repository: Path, *folders: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *folders],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_clean_tree(repository: Path) -> None:
    write(repository, "core/ignored/x.py", "# it sits\n")
    assert check(repository) == (0, "")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("core/a.py", "# It is told.\n", "core/a.py:1: 'told' is not plain"),
        ("core/a.py", "x = 1\n# sit\n# down\n", "core/a.py:2: 'sit # down' is not plain"),
        ("CONTRIBUTING.md", "# A\n\nNobody\n", "CONTRIBUTING.md:3: 'Nobody' is not plain"),
        ("docs/a.md", "mend\n", "docs/a.md:1: 'mend' is not plain"),
        ("cli/a.py", "class Seat:\n    pass\n", "cli/a.py:1: the name Seat does not say"),
        ("hack/a.py", "x = Surroundings()\n", "hack/a.py:1: the name Surroundings does not"),
        ("trainer/a.py", "class Reader:\n    pass\n", "class Reader is also in trainer/a.py:1"),
        ("operator/a.py", "x = 1\n" * 401, "operator/a.py:1: 401 lines, more than 400"),
        ("tests/a.py", "x = 1\n" * 401, "tests/a.py:1: 401 lines, more than 400"),
        ("core/a.py", LONG, "core/a.py:1: long has 52 lines"),
        ("tests/a.py", "x = [1]  # fmt: skip\n", "tests/a.py:1: '# fmt: skip' switches"),
        ("core/a.py", "# fmt: off\n", "core/a.py:1: '# fmt: off' switches"),
    ],
)
def test_each_rule(repository: Path, name: str, text: str, expected: str) -> None:
    """The file is not added to git: new files are checked too."""
    write(repository, name, text)
    code, output = check(repository)
    assert code == 1
    assert expected in output


def test_a_folder_with_too_many_files(repository: Path) -> None:
    for number in range(21):
        write(repository, f"core/many/m{number}.py", "")
    code, output = check(repository)
    assert (code, output) == (1, "core/many: 21 Python files, more than 20\n")


def test_no_false_alarm(repository: Path) -> None:
    """Parts of words, longer names, and texts about the formatter."""
    write(repository, "core/a.py", 'SEATS = "# fmt: skip"\nmended_by = "toldo"\nSeatMap = 1\n')
    write(repository, "hack/x/go.sum", "told\n")
    assert check(repository) == (0, "")


def test_only_the_given_folder_is_reported(repository: Path) -> None:
    write(repository, "core/a.py", "# told\n")
    write(repository, "corex/a.py", "x = 1\n" * 401)
    write(repository, "cli/a.py", "class Reader:\n    pass\n")
    assert check(repository, "docs")[0] == 2
    code, output = check(repository, "cli")
    assert code == 1
    assert output.splitlines() == [
        "cli/a.py:1: class Reader is also in core/llmtrain_core/clean.py:4"
    ]
    code, output = check(repository, "core")
    assert "told" in output
    assert "corex" not in output


def test_a_folder_without_files_is_an_error(repository: Path) -> None:
    assert check(repository, "cor") == (2, "check_style: no file in cor\n")
