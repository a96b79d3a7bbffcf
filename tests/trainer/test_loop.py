"""What a rank's loop refuses, and what it measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.errors import InputError, TrainerError

pytestmark = pytest.mark.torch

RunTrainers = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]


def test_pods_that_prepared_other_data_do_not_train(
    shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    def train(trainer: Any) -> tuple[str, str | None, bool]:
        if trainer.grid.coordinate("dp") == 1:
            trainer.data = replace(trainer.data, digest="other")
        try:
            trainer.train()
        except InputError as error:
            return error.reason, error.field, "[1]" in error.message
        raise AssertionError("trained")

    expected = [("CorpusMismatch", "spec.data.sources", True)] * 2
    assert run_trainers(job_spec(data=2), shards, train) == expected


@pytest.mark.parametrize("layout", [{"data": 2}, {"pipeline": 2}, {"tensor": 2}], ids=str)
def test_a_loss_that_is_no_number_stops_every_rank_before_the_weights_change(
    layout: dict[str, int], tmp_path: Path, shards: Any,
    run_trainers: RunTrainers, job_spec: MakeSpec, parameter_hash: Callable[[Any], str],
) -> None:  # fmt: skip
    checkpoint = {"uri": f"file://{tmp_path}", "everySteps": 1}

    def train(trainer: Any) -> tuple[str, bool, bool]:
        import torch
        import torch.distributed as dist

        trainer.take_step()
        if dist.get_rank() == 1:
            with torch.no_grad():
                trainer.parameters[0].to_local().fill_(float("nan"))
        before = parameter_hash(trainer)
        try:
            trainer.train()
        except TrainerError as error:
            unchanged = parameter_hash(trainer) == before
            return error.reason, "step 2" in error.message, unchanged
        raise AssertionError("trained")

    spec = job_spec(**layout, checkpoint=checkpoint)
    assert run_trainers(spec, shards, train) == [("LossNotFinite", True, True)] * 2
    assert not list(tmp_path.iterdir())


def test_the_step_that_connects_is_no_sample(
    shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    """Nor is it after a resume, at whatever step that starts."""
    from llmtrain_trainer.reports import StepReport

    def train(trainer: Any) -> list[int]:
        trainer.step = 11
        trainer.train()
        steps = [report for report in trainer.sent if isinstance(report, StepReport)]
        return [report.step for report in steps if report.collectives]

    spec = job_spec(data=2, training={"steps": 14})
    assert run_trainers(spec, shards, train) == [[13], [13]]
