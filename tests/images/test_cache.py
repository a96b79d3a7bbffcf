"""The cache of images keeps what is in use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmtrain_images.cache import KEPT, mark_used
from llmtrain_images.wheels import LOCKS, without_cuda

pytestmark = pytest.mark.unit


def test_entries_that_were_not_used_for_long_go(tmp_path: Path) -> None:
    for number in range(KEPT + 2):
        entry = tmp_path / f"{number:016x}"
        entry.mkdir()
        (entry / "file").touch()
        os.utime(entry, (number, number))
    (tmp_path / "partial").mkdir()
    mark_used(tmp_path / f"{0:016x}")
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"partial", f"{0:016x}", *(f"{n:016x}" for n in range(3, KEPT + 2))}


def test_the_lock_of_the_cpu_variant_has_all_but_cuda() -> None:
    lock = (LOCKS / "trainer.txt").read_text()
    left = without_cuda(lock)
    assert "\ntorch==" in left and "\nnvidia-ml-py==" in left
    assert "\nnvidia-cublas==" not in left and "\ntriton==" not in left
    hashes = left.count("--hash=")
    assert left.count("==") < lock.count("==") and hashes < lock.count("--hash=")
    assert set(left.splitlines()) <= set(lock.splitlines())
