"""A run that resumes with another batch or number of steps: what goes on, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.errors import InputError
from tests.support.trainer.jobs import job_spec

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("decay", "step", "before", "now", "refused"),
    [
        ("cosine", 50, 100, 200, "the learning rate would jump from 0.005"),
        ("cosine", 50, 100, 80, "the learning rate would jump"),
        ("cosine", 100, 100, 200, "the learning rate would jump"),  # a finished run made longer
        ("cosine", 50, 100, 100, None),
        ("cosine", 50, None, 200, None),  # an older release did not record it
        ("cosine", 1, 100, 200, None),  # still in the warm-up
        ("constant", 50, 100, 200, None),
        ("constant", 100, 100, 200, None),
        ("constant", 50, 100, 50, None),
        ("constant", 50, 100, 40, "it has more steps than the job"),
    ],
)
def test_the_learning_rate_is_continuous_or_the_change_is_refused(
    decay: str, step: int, before: int | None, now: int, refused: str | None
) -> None:
    """A cosine decay to another end jumped to another rate at the restart."""
    from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata
    from llmtrain_trainer.job_spec import from_spec
    from llmtrain_trainer.training.preflight import require_matching_run

    training = {"steps": now, "schedule": {"warmupSteps": 2, "decay": decay}}
    run = from_spec("test", job_spec(training=training))
    saved = CheckpointMetadata(step, "2.15.0", "dp1", {}, "d", 8 * step, None, steps=before)
    if refused is None:
        require_matching_run(saved, "d", run)
        return
    with pytest.raises(InputError, match=refused) as caught:
        require_matching_run(saved, "d", run)
    assert (caught.value.reason, caught.value.field) == (
        "CheckpointMismatch",
        "spec.training.steps",
    )
    assert f"train {before} steps" in (caught.value.remedy or "")


def test_no_sequence_is_skipped_or_read_twice_with_another_batch(
    tmp_path: Path, shards: Any, run_trainers: Callable[..., list[Any]]
) -> None:
    checkpoint = {"uri": f"file://{tmp_path}", "everySteps": 100, "keep": 9}

    def spec(batch: int) -> dict[str, Any]:
        return job_spec(
            checkpoint=checkpoint,
            architecture={"layers": 1},
            training={"globalBatchSize": batch, "microBatchSize": 1},
        )

    def two_steps(trainer: Any) -> list[int]:
        numbers: list[int] = []
        batches = trainer.training_data.batches
        read = batches._place
        batches._place = lambda number: (numbers.append(number), read(number))[1]
        trainer.resume()
        for _ in range(2):
            trainer.take_step()
        trainer.save()
        return numbers

    read = [
        number for batch in (4, 3, 5) for number in run_trainers(spec(batch), shards, two_steps)[0]
    ]
    assert read == list(range(8 + 6 + 10))
    found = [
        json.loads((tmp_path / f"step-{step}/llmtrain.json").read_text()) for step in (2, 4, 6)
    ]
    assert [each["sequences"] for each in found] == [8, 14, 24]
    assert [each["steps"] for each in found] == [6, 6, 6]
