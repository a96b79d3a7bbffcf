"""Fixtures to run the command line in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain_cli.main import run
from tests.support.cluster_files import Shell


@pytest.fixture
def llmtrain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Run the command line in this process; return exit code, stdout and stderr."""

    def shell(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llmtrain", *arguments])
        with pytest.raises(SystemExit) as end:
            run()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(end.value.code or 0), out, err

    return shell


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, document: Any, as_yaml: bool = False) -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(document) if as_yaml else json.dumps(document))
        return str(path)

    return write
