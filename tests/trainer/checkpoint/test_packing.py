"""A run of packed examples resumes exactly, and one that began without packing goes on without."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.errors import InputError
from tests.support.trainer.example_data import random_examples
from tests.support.trainer.jobs import job_spec

pytestmark = pytest.mark.torch

LENGTHS = (3, 5, 17, 9, 4, 12, 7, 6, 8, 15, 2, 11)


def spec_of(folder: Path, steps: int = 6, **data: Any) -> dict[str, Any]:
    spec = job_spec(
        checkpoint={"uri": f"file://{folder}", "everySteps": 100, "keep": 9},
        architecture={"layers": 1},
        training={"steps": steps, "globalBatchSize": 2, "microBatchSize": 1},
    )
    spec["data"] |= {"objective": "sft", **data}
    return spec


def test_a_packed_run_that_resumes_is_the_run_that_did_not_stop(
    tmp_path: Path, run_trainers: Callable[..., list[Any]]
) -> None:
    """Over the end of an epoch, so that the next order of the sequences counts, too."""
    data = random_examples(tmp_path, LENGTHS)

    def whole(trainer: Any) -> list[tuple[float, int]]:
        return [_step(trainer) for _ in range(6)]

    def half(trainer: Any) -> list[tuple[float, int]]:
        trainer.resume()
        steps = [_step(trainer) for _ in range(3)]
        trainer.save()
        trainer.wait_for_save()
        return steps

    (expected,) = run_trainers(spec_of(tmp_path / "whole"), data, whole)
    found = [
        step for _ in range(2) for step in run_trainers(spec_of(tmp_path / "a"), data, half)[0]
    ]
    assert found == expected
    assert sum(tokens for _, tokens in expected[:3]) == sum(each - 1 for each in LENGTHS)
    record = json.loads((tmp_path / "a/step-6/llmtrain.json").read_text())
    assert (record["sequences"], record["packed"]) == (12, True)


def test_a_checkpoint_of_an_older_release_goes_on_without_packing(
    tmp_path: Path, run_trainers: Callable[..., list[Any]]
) -> None:
    data, folder = random_examples(tmp_path, LENGTHS), tmp_path / "a"

    def begin(trainer: Any) -> int:
        _step(trainer)
        trainer._metadata = lambda made=trainer._metadata: replace(made(), packed=None)
        trainer.save()
        trainer.wait_for_save()
        return int(trainer.training_data.batches._windows[0])

    def go_on(trainer: Any) -> tuple[int, int, bool]:
        trainer.resume()
        windows = int(trainer.training_data.batches._windows[0])
        return trainer.sequences, windows, trainer._metadata().packed

    assert run_trainers(spec_of(folder, packing=False), data, begin) == [len(LENGTHS)]
    assert run_trainers(spec_of(folder), data, go_on) == [(2, len(LENGTHS), False)]


@pytest.mark.parametrize(
    ("saved", "asked", "refused"),
    [
        (True, None, False),
        (True, True, False),
        (True, False, True),
        (False, None, False),
        (False, True, True),
        (None, None, False),
        (None, False, False),
        (None, True, True),
    ],
)
def test_another_packing_than_that_of_the_checkpoint_is_refused(
    saved: bool | None, asked: bool | None, refused: bool
) -> None:
    from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata
    from llmtrain_trainer.job_spec import from_spec
    from llmtrain_trainer.training.preflight import require_matching_run

    run = from_spec("test", spec_of(Path("/x"), **({} if asked is None else {"packing": asked})))
    metadata = CheckpointMetadata(2, "2.15.0", "dp1", {}, "d", 4, None, steps=6, packed=saved)
    if not refused:
        require_matching_run(metadata, "d", run)
        return
    with pytest.raises(InputError, match="packing of examples") as caught:
        require_matching_run(metadata, "d", run)
    assert (caught.value.reason, caught.value.field) == ("CheckpointMismatch", "spec.data.packing")
    assert caught.value.remedy


def _step(trainer: Any) -> tuple[float, int]:
    report = trainer.take_step()
    return report.loss, report.tokens
