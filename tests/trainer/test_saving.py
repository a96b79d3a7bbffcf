"""Saving in the background, on disks that fill up, and by ranks that are killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.checkpoint import folders
from llmtrain_trainer.reports import CheckpointReport

pytestmark = pytest.mark.torch

RunTrainers = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]


def _checkpoint(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"uri": f"file://{folder}", "everySteps": 2, "keep": 2, "async": True, **changes}


def test_a_run_that_saves_in_the_background_keeps_the_newest_and_exports(
    tmp_path: Path, shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    export = tmp_path / "model"
    spec = job_spec(
        tensor=2, checkpoint=_checkpoint(tmp_path, exportHuggingFace=f"file://{export}")
    )

    def train(trainer: Any) -> tuple[list[int], Any]:
        from torch.distributed.tensor import DTensor

        trainer.train()
        whole = {
            name: parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            for name, parameter in trainer.model.named_parameters()
        }
        told = [report.step for report in trainer.sent if isinstance(report, CheckpointReport)]
        return told, {name: tensor.detach().numpy() for name, tensor in whole.items()}

    (told, weights), _ = run_trainers(spec, shards, train)
    assert told == [2, 4, 6]
    assert folders.complete_steps(tmp_path) == [4, 6]

    import numpy as np

    from llmtrain_trainer.weights.huggingface import weights_of_huggingface

    _, read = weights_of_huggingface(export)
    for name, tensor in read(list(weights)).items():
        assert np.array_equal(tensor.numpy(), weights[name].astype(np.float32)), name
