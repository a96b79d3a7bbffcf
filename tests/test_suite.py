"""Rules of the tests themselves: how they import, and what a test that hangs prints."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

STOPPED = """
import asyncio, subprocess, threading, time
import pytest

def test_in_the_test():
    time.sleep(600)

@pytest.fixture(scope="module")
def module_fixture():
    time.sleep(600)

def test_in_a_module_fixture(module_fixture):
    pass

def test_with_a_subprocess():
    subprocess.run(["sleep", "600"])

def test_with_a_thread():
    thread = threading.Thread(target=time.sleep, args=(600,), daemon=True)
    thread.start()
    thread.join()

async def test_in_a_coroutine():
    await asyncio.sleep(600)

@pytest.fixture(scope="session")
def session_fixture():
    yield
    time.sleep(600)

def test_at_the_end_of_a_session_fixture(session_fixture):
    pass
"""
IGNORED = """
import asyncio, time

{}def test_that_ignores_its_limit():
    while True:
        try:
            {}(600)
        except BaseException:
            pass
"""


def run_pytest(folder: Path, text: str, *options: str) -> str:
    """Run tests whose limit is one second; return what is printed."""
    (folder / "test_hanging.py").write_text(text)
    plugin = ("-p", "tests.support.deadline", "-p", "no:cacheprovider")
    config = ("-c", "pyproject.toml", f"--rootdir={folder}", "-o", "timeout=1")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *config, *plugin, *options, str(folder)],
        cwd=ROOT,
        env={**os.environ, "LLMTRAIN_TEST_GRACE_SECONDS": "2"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_a_test_over_its_limit_is_named_with_its_stack(tmp_path: Path) -> None:
    printed = run_pytest(tmp_path, STOPPED)
    names = re.findall(r"def (test_\w+)", STOPPED)
    for name in names:
        assert re.search(rf"(FAILED|ERROR) .*::{name}\b", printed), (name, printed)
    assert len(re.findall(r"^E +Failed: Timeout \(>1\.0s\)", printed, re.M)) >= len(names)
    for place in ("time.sleep(600)", "waitpid", "thread.join()", "asyncio"):
        assert place in printed, printed


@pytest.mark.parametrize(
    ("kind", "sleep", "options"),
    [("", "time.sleep", ()), ("async ", "await asyncio.sleep", ("-n", "1"))],
    ids=["plain", "coroutine under xdist"],
)
def test_a_test_that_ignores_its_limit_is_named_and_ends_the_run(
    kind: str, sleep: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    printed = run_pytest(tmp_path, IGNORED.format(kind, sleep), *options)
    assert "::test_that_ignores_its_limit still runs 2 s after its limit of 1 s" in printed
    assert 'test_hanging.py", line ' in printed or "asyncio/base_events.py" in printed, printed


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for file in sorted((ROOT / "tests").rglob("*.py")):
        yield file.relative_to(ROOT), ast.parse(file.read_text())


def test_no_test_changes_the_path_or_imports_another_test() -> None:
    shared = {file.stem for file in (ROOT / "tests" / "support").rglob("*.py")}
    for file, module in modules():
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                first, *rest = node.module.split(".")
                assert first != "conftest" and not first.startswith(("test_", "bench_")), file
                assert first != "tests" or rest[:1] == ["support"], file
                assert first not in shared - set(sys.stdlib_module_names), (file, first)
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
                raise AssertionError(f"{file} uses sys.path")
