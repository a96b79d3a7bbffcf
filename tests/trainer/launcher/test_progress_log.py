"""The log of a pod has a line per phase, and one about every 10 s of steps."""

from __future__ import annotations

from typing import Literal

import pytest

from llmtrain_core.api.status.network_tuning import NetworkTrial, NetworkTuningStatus
from llmtrain_trainer.job_spec import from_spec
from llmtrain_trainer.launcher.progress_log import LOG_SECONDS, ProgressLog
from llmtrain_trainer.launcher.status_tracker import StatusTracker
from llmtrain_trainer.runtime.reports import (
    EvaluationReport,
    HeldOutScore,
    PhaseReport,
    Report,
    StepReport,
)
from tests.support.trainer.jobs import job_spec

pytestmark = pytest.mark.unit


class Pod:
    """A pod whose ranks report, and what it logs."""

    def __init__(self, rank: int = 0, steps: int = 1000) -> None:
        self.rank, self.now, self.lines = rank, 0.0, list[str]()
        log = ProgressLog(rank == 0, self.lines.append, lambda: self.now)
        self.tracker = StatusTracker((rank,), attempt=0, log=log)
        self.tracker.set_job(from_spec("job", job_spec(data=2, training={"steps": steps})))

    def report(self, report: Report) -> None:
        self.tracker.on_report(self.rank, report)

    def step(self, number: int, seconds: float) -> None:
        self.now += seconds
        self.report(StepReport(number, seconds, {}, 512, 3.14159, 0.5, 3e-4))


def about_steps(lines: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith("step ") and ": loss" in line]


@pytest.mark.parametrize("seconds", [0.25, 4.0, 60.0])
def test_a_line_about_steps_is_written_every_10_seconds(seconds: float) -> None:
    """For the first step, which took long to come, and for the last one, too."""
    pod = Pod()
    for number in range(1, 1001):
        pod.step(number, seconds)
    every = max(1, int(-(-LOG_SECONDS // seconds)))
    assert about_steps(pod.lines) == sorted({*range(1, 1001, every), 1000})


def test_a_line_has_what_a_reader_wants_to_know() -> None:
    pod = Pod(steps=61)
    pod.step(1, 2.0)
    assert pod.lines[-1] == (
        "step 1 of 61: loss 3.1416, gradient norm 0.5, learning rate 0.0003, 256 tokens/s,"
        " 2 s per step, 0:02:00 left"
    )


def test_a_phase_has_one_line() -> None:
    pod = Pod()
    for phase in ("starting", "starting", "evaluating"):
        pod.report(PhaseReport(phase, 0))
    pod.report(EvaluationReport("before", HeldOutScore(5.5, None, {"a": 5.5}), 0))
    pod.report(PhaseReport("training", 0))
    pod.step(1, 1.0)
    pod.report(PhaseReport("saving", 1))
    pod.report(PhaseReport("training", 1))
    pod.step(2, 1.0)  # within 10 s of the last line
    pod.tracker.enter("finished")
    assert [line.split(":")[0] for line in pod.lines] == [
        "preparing, step 0 of 1000",
        "starting, step 0 of 1000",
        "evaluating, step 0 of 1000",
        "step 0",
        "training, step 0 of 1000",
        "step 1 of 1000",
        "saving, step 1 of 1000",
        "training, step 1 of 1000",
        "finished, step 2 of 1000",
    ]


def test_the_first_step_after_a_restart_has_a_line() -> None:
    from datetime import UTC, datetime

    from llmtrain_core.api.failure_info import FailureInfo

    pod = Pod()
    pod.step(1, 1.0)
    pod.tracker.on_restart(FailureInfo("Signal", "SIGKILL", exit_code=137), datetime.now(UTC))
    pod.report(PhaseReport("training", 0))
    pod.step(1, 1.0)
    assert about_steps(pod.lines) == [1, 1]


def test_an_evaluation_has_the_loss_of_each_source() -> None:
    pod = Pod()
    score = HeldOutScore(4.25, 0.125, {"web": 4.0, "code": 4.5})
    pod.report(EvaluationReport("during", score, 100))
    assert pod.lines[-1] == (
        "step 100: held-out loss 4.2500, exact match 12.5% (web 4.0000, code 4.5000)"
    )


def test_other_pods_log_their_phases_only() -> None:
    pod = Pod(rank=1)
    pod.report(PhaseReport("training", 0))
    pod.step(1, 20.0)
    pod.report(EvaluationReport("after", HeldOutScore(4.0), 1))
    assert pod.lines == ["preparing, step 0 of 1000", "training, step 0 of 1000"]


def test_each_trial_of_variables_has_lines_and_its_own_rate() -> None:
    pod = Pod(steps=2)
    trials: list[NetworkTrial] = []
    for variables, seconds in ({}, 4.0), ({"NCCL_NVLS_ENABLE": "0"}, 2.0):
        for done in (None, seconds):
            now = [*trials, NetworkTrial(variables=variables, step_seconds=done)]
            tuning = NetworkTuningStatus(state="Trying", placement="", fastest={}, trials=now)
            pod.tracker.on_network_tuning(tuning)
            if done is None:
                pod.step(1, seconds)
                pod.step(2, seconds)
        trials = now
        pod.tracker.on_next_trial()
    shown = [
        line.partition(", gradient")[0] for line in pod.lines if line[:5] in ("trial", "step ")
    ]
    assert shown == [
        "trial 1, the job as it is: starts",
        "step 1 of 2: loss 3.1416",
        "step 2 of 2: loss 3.1416",
        "trial 1, the job as it is: 4 s per step",
        "trial 2, NCCL_NVLS_ENABLE=0: starts",
        "step 1 of 2: loss 3.1416",
        "step 2 of 2: loss 3.1416",
        "trial 2, NCCL_NVLS_ENABLE=0: 2 s per step",
    ]
    rates = [line.split(", ")[3] for line in pod.lines if line.startswith("step 1")]
    assert rates == ["128 tokens/s", "256 tokens/s"]


def test_a_trial_that_is_repeated_starts_again() -> None:
    pod = Pod(steps=2)
    again = NetworkTrial(variables={"A": "1"}, failure="Interrupted")
    states: tuple[Literal["Trying", "Chosen"], ...] = ("Trying", "Chosen")
    for state in states:
        tuning = NetworkTuningStatus(state=state, placement="", fastest={}, trials=[again])
        pod.tracker.on_network_tuning(tuning)
        again = NetworkTrial(variables={"A": "2"}, failure="Interrupted")
    assert pod.lines[-2:] == ["trial 1, A=1: starts again", "trial 1, A=2: Interrupted"]
