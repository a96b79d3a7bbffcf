"""Texts and file names of strangers in logs and on terminals have no control characters."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain_cli import main as command_line
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_operator.__main__ import LogFormatter as OperatorFormatter
from llmtrain_trainer.runtime.log_format import PodLogFormatter, write_line

pytestmark = pytest.mark.unit

TITLE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj.exe\u2066"
FORGED = "\n2026-01-01 00:00:00,000 INFO llmtrain_operator job=bob/job uid=1 deleted"
HOSTILE = f"{TITLE}{FORGED}\r\u2028\x85{FORGED}\udcff\x00"
FORMATTERS: dict[str, Callable[[], logging.Formatter]] = {
    "operator": OperatorFormatter,
    "rank": lambda: PodLogFormatter("%(asctime)s rank 3 %(message)s"),
}


@pytest.mark.parametrize("name", FORMATTERS)
def test_an_entry_of_a_log_is_one_entry(name: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(FORMATTERS[name]())
    log = logging.Logger("test")
    log.addHandler(handler)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("job=%s cannot be read: %s", HOSTILE, HOSTILE)
    stream.seek(0)
    first, *rest = stream.read().rstrip("\n").split("\n")
    assert first.isprintable() and "cannot be read" not in first.partition("job=")[0]
    assert rest and all(line.isprintable() and line.startswith("  ") for line in rest)
    assert any("Traceback" in line for line in rest)


def test_a_line_of_a_pod_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_line(f"CorpusUnreadable: /data/{HOSTILE}.txt")
    line = capsys.readouterr().err
    assert line.endswith("\n") and line[:-1].isprintable()


def test_a_file_name_in_a_termination_message() -> None:
    failure = FailureInfo("CorpusUnreadable", f"/data/{HOSTILE}", field=HOSTILE, remedy=HOSTILE)
    error = json.loads(failure.to_termination_message())["error"]
    assert all(error[key].isprintable() for key in ("message", "field", "remedy"))


def test_a_warning_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["llmtrain", "layout"])
    monkeypatch.setattr(logging.lastResort, "formatter", None)
    with pytest.raises(SystemExit):
        command_line.run()
    assert logging.lastResort is not None
    logging.lastResort.handle(logging.makeLogRecord({"msg": TITLE, "levelno": logging.WARNING}))
    assert capsys.readouterr().err.rstrip("\n").isprintable()


COMMANDS = {
    "plan": ["plan", "-f"],
    "place": ["place", "-f"],
    "run": ["run", "-f"],
}


@pytest.mark.parametrize("content", [None, "{", f"kind: {json.dumps(HOSTILE[:30])}\n"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_name_in_an_error_of_the_command_line(
    command: str,
    content: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / f"{TITLE}\n\udcff.yaml"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("sys.argv", ["llmtrain", *COMMANDS[command], str(path)])
    with pytest.raises(SystemExit) as ended:
        command_line.run()
    assert ended.value.code == 2
    found = capsys.readouterr()
    assert found.out == "" and "owned" in found.err
    assert found.err.replace("\n", "").isprintable()
