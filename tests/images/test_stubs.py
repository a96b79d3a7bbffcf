"""A stub has the symbols of the library that it replaces, and does none of its work."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from llmtrain_devcluster.go_build.tools import print_progress
from llmtrain_images.debian import install_missing
from llmtrain_images.stubs import (
    CALLED,
    COMPILER,
    Symbol,
    defined_symbols,
    linked_libraries,
    write_stub,
)

pytestmark = pytest.mark.kind

SOURCE = """
__asm__(".symver first_old,first@OLD");
int first_old(void) { return 1; }
__asm__(".symver first_new,first@@NEW");
int first_new(void) { return 2; }
int second(void) { return 3; }
int table[4];
static int hidden(void) { return 4; }
int (*pointer)(void) = hidden;
"""
VERSIONS = "OLD { global: first; }; NEW { global: first; second; table; pointer; } OLD;"
CALL = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).second()"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    install_missing(*COMPILER, print_progress)
    (tmp_path / "sample.c").write_text(SOURCE)
    (tmp_path / "sample.map").write_text(VERSIONS)
    target = tmp_path / "libsample.so.1"
    script = f"-Wl,--version-script={tmp_path / 'sample.map'}"
    command = ["gcc", "-shared", "-fPIC", script, "-o", str(target), str(tmp_path / "sample.c")]
    subprocess.run(command, check=True)
    return target


def test_a_stub_has_the_same_symbols_and_ends_the_process(library: Path, tmp_path: Path) -> None:
    symbols = defined_symbols(library)
    assert Symbol("first", "NEW", True) in symbols
    assert Symbol("table", "NEW", False) in symbols
    assert "hidden" not in {symbol.name for symbol in symbols}
    stub = tmp_path / "stub" / "libsample.so.1"
    stub.parent.mkdir()
    write_stub(library.name, symbols, stub)
    assert defined_symbols(stub) == symbols
    assert [path.name for path in stub.parent.iterdir()] == [stub.name]
    ctypes.CDLL(str(stub))
    command = [sys.executable, "-c", CALL]
    assert subprocess.run([*command, str(library)], check=False).returncode == 0
    called = subprocess.run([*command, str(stub)], capture_output=True, text=True, check=False)
    assert called.returncode == -6
    assert "libsample.so.1: this image has no CUDA" in called.stderr


def test_the_libraries_of_torch_are_found() -> None:
    names = [path.name for path in linked_libraries(Path(sysconfig.get_path("purelib")))]
    for name in CALLED:
        assert [each for each in names if each.startswith(name)], name
    assert len(names) > len(CALLED)
