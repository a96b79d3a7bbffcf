"""The metrics file has every step once, whatever happened in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from upath import UPath

from llmtrain_trainer.runtime.reports import HeldOutScore, StepReport
from llmtrain_trainer.training.metrics_file import METRICS_FILE, WRITE_SECONDS, MetricsFile

pytestmark = pytest.mark.unit


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def step(number: int, loss: float = 2.0) -> StepReport:
    return StepReport(number, 0.5, {}, 10, loss, 1.0, 0.1)


def add(file: MetricsFile, first: int, last: int, loss: float = 2.0, every: int = 2) -> None:
    """Add steps, and an evaluation after each `every` of them."""
    for number in range(first, last + 1):
        file.add_step(step(number, loss), 10 * number, number / 7)
        if number % every == 0:
            file.add_evaluation(number, HeldOutScore(loss + 1, None, {"a": loss}))


def started(folder: Any, at: int, clock: Clock | None = None) -> MetricsFile:
    file = MetricsFile(folder, clock or Clock())
    file.resume(at)
    return file


def lines(folder: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def steps(folder: Any) -> list[int]:
    return [line["step"] for line in lines(folder) if "loss" in line]


def evaluations(folder: Any) -> list[int]:
    return [line["step"] for line in lines(folder) if "heldOutLoss" in line]


@pytest.fixture(params=["volume", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return tmp_path / "new" if request.param == "volume" else UPath(f"memory://{uuid4().hex}/new")


def test_a_resumed_run_has_no_step_twice_and_none_is_missing(folder: Any) -> None:
    file = started(folder, 0)
    file.add_evaluation(0, HeldOutScore(5.0))
    add(file, 1, 4)
    file.flush()  # before the checkpoint of step 4
    add(file, 5, 7, loss=9.0)
    file.flush()
    for _ in range(2):  # the second run ends before it has written anything
        again = started(folder, 4)
        assert (again.tokens, again.has_evaluation(4), again.has_evaluation(5)) == (40, True, False)
    add(again, 5, 9)
    again.flush()
    assert steps(folder) == list(range(1, 10))
    assert evaluations(folder) == [0, 2, 4, 6, 8]
    assert {line["loss"] for line in lines(folder) if "loss" in line} == {2.0}
    assert lines(folder)[2] == {
        **lines(folder)[2],
        "step": 2,
        "loss": 2.0,
        "gradNorm": 1.0,
        "learningRate": 0.1,
        "tokens": 20,
        "epoch": 2 / 7,
        "seconds": 0.5,
    }
    assert lines(folder)[3]["heldOutLossBySource"] == {"a": 2.0}


def test_what_is_torn_or_foreign_is_removed(tmp_path: Path) -> None:
    file = started(tmp_path, 0)
    add(file, 1, 3, every=9)
    file.flush()
    with (tmp_path / METRICS_FILE).open("ab") as torn:
        torn.write(b"\xff{}\n[1]\n" + b'{"a":' * 999 + b'\n{"step": 4, "loss')
    again = started(tmp_path, 3)
    add(again, 4, 5, every=9)
    again.flush()
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


def test_a_file_that_cannot_be_written_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "volume"
    folder.write_text("in the way")
    file = started(folder, 0)
    add(file, 1, 2)
    for _ in range(3):
        file.flush()
    assert len(caplog.records) == 1  # once, not for each of them
    folder.unlink()
    file.flush()
    add(file, 3, 4)
    file.flush()
    assert steps(folder) == [1, 2, 3, 4]


def test_a_write_that_failed_halfway_leaves_no_step_twice(tmp_path: Path) -> None:
    file = started(tmp_path, 0)
    add(file, 1, 2)
    file.flush()
    path, aside = tmp_path / METRICS_FILE, tmp_path / "aside"
    path.rename(aside)
    path.mkdir()
    add(file, 3, 4)
    file.flush()
    path.rmdir()
    aside.rename(path)
    with path.open("ab") as half:  # what the failed write had reached
        half.write(json.dumps({"step": 3, "tokens": 30, "loss": 2.0}).encode() + b'\n{"step"')
    add(file, 5, 5)
    file.flush()
    assert steps(tmp_path) == [1, 2, 3, 4, 5] and evaluations(tmp_path) == [2, 4]


def test_a_run_without_its_file_goes_on(folder: Any) -> None:
    """That of a release before, for example."""
    file = started(folder, 5)
    assert file.tokens is None and not file.has_evaluation(5)
    add(file, 6, 7)
    file.flush()
    assert steps(folder) == [6, 7]


def test_lines_are_written_about_every_10_seconds_to_volumes_only(folder: Any) -> None:
    clock = Clock()
    file = started(folder, 0, clock)
    file.add_step(step(1), 10, 0.1)
    assert not (folder / METRICS_FILE).exists()
    clock.now = WRITE_SECONDS
    file.add_step(step(2), 20, 0.2)
    assert (folder / METRICS_FILE).exists() == isinstance(folder, Path)
    file.flush()
    assert steps(folder) == [1, 2]


def test_a_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    file = started(tmp_path, 0)
    file.add_evaluation(0, HeldOutScore(float("inf"), 0.5, {"a": float("nan")}))
    file.flush()
    line = lines(tmp_path)[0]
    assert (line["heldOutLoss"], line["exactMatch"], line["heldOutLossBySource"]) == (
        None,
        0.5,
        {"a": None},
    )
