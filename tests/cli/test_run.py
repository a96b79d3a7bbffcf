"""`llmtrain run` with real ranks: stopped with Ctrl-C, it goes on with the same command."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.trainer.jobs import ARCHITECTURE

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

HEEDS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
"""A test run in the background ignores SIGINT, and what it starts inherits that."""
COMMAND = [
    sys.executable,
    "-c",
    f"{HEEDS_CTRL_C}from llmtrain_cli.main import run; run()",
    "run",
]
STEPS = 120


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Tensor 2 x data 2, of which two processes run tensor 2."""
    text = tmp_path / "text"
    text.mkdir()
    for number in range(8):
        words = [f"word{(number * 31 + i * i) % 97} and" for i in range(300)]
        (text / f"{number}.txt").write_text(" ".join(words))
    spec: dict[str, Any] = {
        "model": {"architecture": ARCHITECTURE},
        "data": {"sources": [{"name": "text", "uri": text.as_uri()}], "heldOutFraction": 0.2},
        "training": {
            "steps": STEPS,
            "globalBatchSize": 4,
            "microBatchSize": 2,
            "precision": "float32",
        },
        "parallelism": {"tensor": 2, "data": 2},
        "workers": {"gpusPerNode": 2, "image": "none"},
        "checkpoint": {"uri": "file:///of/the/cluster", "everySteps": 10},
    }
    manifest = {
        "apiVersion": "llmtrain.dev/v1alpha1",
        "kind": "LLMTrainingJob",
        "metadata": {"name": "small"},
        "spec": spec,
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return path


def steps(folder: Path) -> list[int]:
    """Return the steps in the metrics file, but for a line that is just being written."""
    path = folder / "checkpoints" / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line["step"] for line in lines if "loss" in line]


def saved(folder: Path) -> list[int]:
    found = (folder / "checkpoints").glob("step-*/.metadata")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def test_stopped_and_started_again(job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [*COMMAND, "-f", str(job), "--nproc", "2", "--output", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as first:
        while first.poll() is None and not (len(steps(folder)) > 3 and saved(folder)):
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        _, said = first.communicate()
    assert first.returncode == 130, said
    at = saved(folder)[-1]
    assert f"step {at} is saved. Run the same command again to resume" in said

    second = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    result = json.loads(second.stdout)
    assert (result["step"], result["layout"]) == (STEPS, "tp2")
    assert result["heldOutLossAfter"] < result["heldOutLossBefore"]
    assert f"resumed at step {at}" in (folder / "log.txt").read_text()
    assert saved(folder)[-1] == STEPS
    assert steps(folder) == list(range(1, STEPS + 1))
    log = (folder / "log.txt").read_text()
    assert log.count(f"step {STEPS} of {STEPS}: loss") == 1
    assert "training, step 0 of" in log and f"finished, step {STEPS} of" in log

    # a third time there is nothing left to do but to say how it ended
    third = subprocess.run(command, capture_output=True, text=True, check=False)
    assert third.returncode == 0, third.stderr
    assert f"{STEPS} steps as tp2" in third.stdout
    assert "loss by step" in third.stdout


def _on_a_terminal(command: list[str], columns: int) -> tuple[int, str]:
    """Run a command on a terminal; return its exit code and all that the terminal got."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    with subprocess.Popen(
        command, stdin=there, stdout=there, stderr=there, env=environment
    ) as process:
        os.close(there)
        seen = b""
        while True:
            try:
                seen += os.read(here, 65536)
            except OSError:  # Linux's way to say that nobody writes any more
                break
    os.close(here)
    return process.returncode, seen.decode()


@pytest.mark.parametrize("columns", [60, 120])
def test_a_terminal_shows_a_bar_that_moves_and_then_the_loss(
    columns: int, job: Path, tmp_path: Path
) -> None:
    command = [*COMMAND, "-f", str(job), "--nproc", "1", "--tensor", "1"]
    code, seen = _on_a_terminal([*command, "--output", str(tmp_path / "out")], columns)
    assert code == 0, seen
    shown = [int(step) for step in re.findall(rf"(?<!\d)(\d+)/{STEPS}(?!\d)", seen)]
    assert shown == sorted(shown)
    assert len(set(shown)) > 2, "no step in between is shown"
    assert shown[-1] == STEPS
    strokes = {len(run) for run in re.findall("m(━+)(?:╸|\x1b)", seen)}
    assert len(strokes) > 2, "the bar stood still"
    assert "training " in seen and "loss" in seen
    assert "ETA" in seen or columns < 80
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    plot = text[text.index("loss by step") :]
    assert len(plot.splitlines()) > 5


def test_a_folder_serves_one_run_at_a_time(job: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "-f", str(job), "--nproc", "2", "--output", str(tmp_path)]
    with (tmp_path / "log.txt").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "another run uses it" in found.stderr


def test_wrong_data_ends_with_the_field(job: Path, tmp_path: Path) -> None:
    manifest = yaml.safe_load(job.read_text())
    manifest["spec"]["data"]["sources"][0]["uri"] = "file:///not/here"
    job.write_text(yaml.safe_dump(manifest))
    command = [*COMMAND, "-f", str(job), "--nproc", "1", "--tensor", "1", "--output", "out"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert "spec.data.sources[0].uri" in found.stderr
    assert "/not/here" in found.stderr
