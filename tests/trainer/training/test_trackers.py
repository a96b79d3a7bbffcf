"""Trackers get every step of a run once over its restarts, and a broken one stops no training."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.reports import HeldOutScore, StepReport
from llmtrain_trainer.training.trackers import require_packages

pytestmark = pytest.mark.torch

WANDB = '''
"""The two functions of Weights & Biases that are used, on a file instead of a service."""
import json, pathlib

class Run:
    def __init__(self, path):
        self.path, self.step = path, 0
        if path.exists():
            self.step = 1 + max(json.loads(line)["step"] for line in path.read_text().splitlines())

    def log(self, values, step):
        if json.dumps(values).count("NaN"):
            raise ValueError("the service is not there")
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\\n")
        self.step = step

    def finish(self):
        self.path.with_suffix(".finished").touch()

def init(project, name, id, resume, dir):
    assert (project, name, resume) == ("llmtrain", "job", "allow")
    return Run(pathlib.Path(dir) / id)
'''


def record(folder: Path, names: list[str], first: int, last: int, saved: int) -> None:
    """Record steps `first` to `last` of a run that resumes after step `saved`."""
    from llmtrain_trainer.training.recorder import Recorder

    recorder = Recorder(folder, "job", names)
    recorder.resume(saved, 10 * saved)
    if saved == 0:
        recorder.add_evaluation(0, HeldOutScore(5.0, 0.25, {"web": 6.0}))
    for number in range(first, last + 1):
        recorder.add_step(StepReport(number, 0.5, {}, 10, 1.0 / number, 1.0, 0.1), number / 7)
    recorder.flush()
    recorder.close()


@pytest.fixture
def alone(run_world: Callable[..., list[Any]]) -> Callable[[Callable[[], Any]], Any]:
    """Run a function on the only rank of a world."""
    return lambda body: run_world(1, lambda _: body())[0]


def test_event_files_are_those_of_tensorboard(tmp_path: Path, alone: Any) -> None:
    def body() -> None:
        record(tmp_path, ["tensorboard"], 1, 7, saved=0)
        record(tmp_path, ["tensorboard"], 5, 8, saved=4)  # steps 5 to 7 are taken again

    alone(body)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    losses = [(each.step, each.value) for each in events.Scalars("train/loss")]
    assert [step for step, _ in losses] == list(range(1, 9))
    assert [loss for _, loss in losses] == pytest.approx([1.0 / n for n in range(1, 9)])
    (held_out,) = events.Scalars("held_out/loss/web")
    assert (held_out.step, held_out.value) == (0, 6.0)
    assert {"held_out/exact_match", "train/learning_rate", "train/tokens", "train/epoch"} <= set(
        events.Tags()["scalars"]
    )


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the runs of a package that has the name of Weights & Biases."""
    package, runs = tmp_path / "package", tmp_path / "runs"
    package.mkdir()
    runs.mkdir()
    (package / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setenv("WANDB_DIR", str(runs))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    return runs


def test_a_restart_continues_the_run_and_repeats_no_step(
    tmp_path: Path, wandb: Path, alone: Any
) -> None:
    folder = tmp_path / "checkpoints"

    def body() -> None:
        record(folder, ["wandb"], 1, 7, saved=0)
        record(folder, ["wandb"], 5, 9, saved=4)
        record(tmp_path / "other", ["wandb"], 1, 2, saved=0)

    alone(body)
    found = sorted(
        [json.loads(line)["step"] for line in path.read_text().splitlines()]
        for path in wandb.iterdir()
        if not path.suffix
    )
    assert found == [[0, 1, 2], list(range(10))]
    assert len(list(wandb.glob("*.finished"))) == 2


def test_a_tracker_that_fails_is_left_out(
    tmp_path: Path, wandb: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from llmtrain_trainer.training.trackers import TrackedRun, Trackers

    trackers = Trackers(["wandb"], TrackedRun("job", "key", tmp_path, 0))
    for number in range(1, 5):
        trackers.write({"step": number, "loss": float("nan") if number == 2 else 1.0})
    trackers.close()
    assert [record.getMessage() for record in caplog.records] == [
        "no metrics for wandb from now on: ValueError('the service is not there')"
    ]
    assert len((wandb / "key").read_text().splitlines()) == 1


def test_a_package_that_is_not_there_is_an_error_of_the_job(
    wandb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_packages([])
    require_packages(["wandb"])
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(InputError, match="does not have the package wandb") as caught:
        require_packages(["wandb"])
    assert (caught.value.reason, caught.value.field) == ("InvalidSpec", "spec.training.trackers")
    assert caught.value.remedy
