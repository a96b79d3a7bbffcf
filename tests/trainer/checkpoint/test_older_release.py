"""What an older release prepared and saved is loaded and trained on, and the log says what it is.

The older release wrote the files: `tests/support/trainer/older_release/README.md` names its commit.
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain_trainer.data.prepare import prepare
from llmtrain_trainer.data.prepared import verify
from llmtrain_trainer.job_spec import from_spec
from tests.support.paths import ROOT
from tests.support.trainer.jobs import job_spec

pytestmark = pytest.mark.torch

OLDER = ROOT / "tests" / "support" / "trainer" / "older_release"
LOSS = 5.668081
"""Of step 4 of the run that wrote the checkpoint and did not stop."""

RunTrainers = Callable[..., list[Any]]


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Return the folder of the unpacked files."""
    with tarfile.open(OLDER / "older.tar.xz") as archive:
        archive.extractall(tmp_path)
    return tmp_path


def prepared(spec: dict[str, Any], folder: Path) -> tuple[Any, list[str]]:
    run, lines = from_spec("test", spec), list[str]()
    return prepare(run.data, run.shape.sequence_length, folder, write_line=lines.append), lines


def test_text_of_format_2_is_loaded_and_trained_on(older: Path, run_trainers: RunTrainers) -> None:
    spec = job_spec(uri=f"file://{older}/notes", architecture={"layers": 1})
    data, lines = prepared(spec, older)
    assert lines[0] == "data: prepared with format 2; notes: cleaning web"
    assert verify(older / "notes") == 2

    (losses,) = run_trainers(spec, data, lambda trainer: [trainer.take_step().loss for _ in "123"])
    assert losses[2] < losses[0] < 7


def test_a_checkpoint_of_a_fine_tuning_run_is_resumed_without_packing(
    older: Path, run_trainers: RunTrainers, caplog: pytest.LogCaptureFixture
) -> None:
    job = (OLDER / "job.yaml").read_text().replace("/tmp/older-release", str(older))
    spec = yaml.safe_load(job)["spec"]
    data, lines = prepared(spec, older)
    assert lines[0] == "data: prepared with format 2; talk: cleaning web"

    def go_on(trainer: Any) -> tuple[int, list[float], str]:
        trainer.resume()
        first = trainer.step
        return first, [trainer.take_step().loss for _ in range(2)], caplog.text

    with caplog.at_level(logging.INFO):
        ((step, losses, log),) = run_trainers(spec, data, go_on)
    assert step == 2
    assert "resumed at step 2, after 8 sequences (saved as dp1 by torch 2.15.0" in log
    assert "examples are not packed, as in the checkpoint" in log
    assert losses[1] == pytest.approx(LOSS, rel=1e-4)
