"""A step reports the tokens that it has processed, not the size of its batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer.example_data import random_examples

pytestmark = pytest.mark.torch

RunTrainers = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]


def test_padding_is_not_counted(
    tmp_path: Path, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    """Every token that is neither padding nor only a target, over all ranks."""
    lengths = [3, 5, 7, 9, 17, 4, 11, 2]
    spec = job_spec(architecture={"layers": 1})
    spec["data"] |= {"objective": "sft", "packing": False}
    data = random_examples(tmp_path, lengths)
    (report,) = run_trainers(spec, data, lambda trainer: trainer.take_step())
    inputs = [each - 1 for each in lengths]  # one epoch: a batch of 8 examples
    assert report.tokens == sum(inputs)
    assert report.attention_span == sum(each**2 for each in inputs) / sum(inputs)


@pytest.mark.parametrize("packing", [True, False])
def test_a_run_by_tokens_has_as_many_steps_as_its_real_tokens_need(
    packing: bool, tmp_path: Path, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    """Padding is no token to train on. The launcher hears of the steps."""
    lengths = [3, 5, 7, 9, 17, 4, 11, 2]
    inputs = sum(lengths) - len(lengths)
    training = {"steps": None, "tokens": 9 * inputs, "globalBatchSize": 1, "microBatchSize": 1}
    spec = job_spec(architecture={"layers": 1}, training=training)
    spec["data"] |= {"objective": "sft", "packing": packing}

    def train(trainer: Any) -> tuple[int, int, list[int]]:
        trainer.train()
        phases = [each.total_steps for each in trainer.sent if hasattr(each, "total_steps")]
        steps = [each.tokens for each in trainer.sent if hasattr(each, "tokens")]
        return trainer.run.steps, sum(steps), [each for each in phases if each is not None]

    ((steps, tokens, told),) = run_trainers(spec, random_examples(tmp_path, lengths), train)
    sequences = 4 if packing else 8
    assert (steps, tokens, told) == (9 * sequences, 9 * inputs, [9 * sequences])


def test_running_text_has_no_padding(
    shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    spec = job_spec(architecture={"layers": 1})
    (report,) = run_trainers(spec, shards, lambda trainer: trainer.take_step())
    assert (report.tokens, report.attention_span) == (8 * 16, None)
