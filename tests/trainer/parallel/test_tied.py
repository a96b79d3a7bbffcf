"""An embedding that both ends of a pipeline use is one parameter to everybody else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch

MOVES = {"pipeline": 2, "pipelineSchedule": "ZBVZeroBubble", "virtualStages": 2}


def test_a_checkpoint_of_a_pipeline_has_it_once_and_goes_on_anywhere(
    tmp_path: Path, shards: Any, run_trainers: Callable[..., Any], job_spec: Callable[..., Any]
) -> None:
    checkpoint = {"uri": f"file://{tmp_path}", "everySteps": 3, "keep": 4}

    def spec(**layout: Any) -> dict[str, Any]:
        return job_spec(  # type: ignore[no-any-return]
            **layout,
            checkpoint=checkpoint,
            architecture={"tiedEmbeddings": True},
            training={"microBatchSize": 1},
        )

    def save(trainer: Any) -> tuple[list[str], list[float]]:
        for _ in range(3):
            trainer.take_step()
        trainer.save()
        names = [name for name, _ in trainer.model.named_parameters()]
        return names, [trainer.take_step().loss for _ in range(3)]

    def go_on(trainer: Any) -> list[float]:
        trainer.resume()
        assert trainer.step == 3
        return [trainer.take_step().loss for _ in range(3)]

    (first, expected), (last, _) = run_trainers(spec(pipeline=2), shards, save)
    assert "tok_embeddings.weight" in first
    assert not {"tok_embeddings.weight", "output.weight"} & set(last)
    for other in (spec(), spec(**MOVES)):
        found = run_trainers(other, shards, go_on)[0]
        assert found == pytest.approx(expected, rel=0, abs=1e-12)
