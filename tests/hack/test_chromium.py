"""The folder of a browser goes after the browser, although its processes still write to it."""

import shutil
from pathlib import Path

import pytest

from llmtrain_pictures import chromium


async def test_a_folder_that_is_written_to_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, remove, calls = tmp_path / "home", shutil.rmtree, []
    folder.mkdir()

    def rmtree(path: Path) -> None:
        if not calls:  # A process creates a file after the others were removed.
            (path / "late").touch()
            calls.append(path)
            path.rmdir()
        remove(path)

    monkeypatch.setattr(chromium.shutil, "rmtree", rmtree)
    await chromium.remove_folder(folder)
    assert calls and not folder.exists()
