"""Every layout starts from the same weights and says exactly what it communicates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.torch

FLOAT64 = 8
RunTrainers = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]


def _observe(trainer: Any) -> dict[str, Any]:
    """Initial weights, and what the second of two steps communicates."""
    import torch

    from llmtrain_trainer.model.init import draw

    layers, seed = trainer.run.architecture.layers, trainer.run.seed
    equal = all(
        torch.equal(
            parameter.full_tensor(),
            draw(name, parameter.shape, seed, layers).to(parameter.dtype),
        )
        for name, parameter in trainer.model.named_parameters()
    )
    trainer.take_step()
    report = trainer.take_step(sampled=True)
    return {
        "initial weights": equal,
        "names": [name for name, _ in trainer.model.named_parameters()],
        "collectives": {(s.group, s.op): (s.count, s.nbytes) for s in report.collectives},
    }


@pytest.fixture(scope="module")
def alone(run_trainers: RunTrainers, job_spec: MakeSpec, shards: Any) -> dict[str, Any]:
    return run_trainers(job_spec(), shards, _observe)[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def grid(run_trainers: RunTrainers, job_spec: MakeSpec, shards: Any) -> list[dict[str, Any]]:
    """tensor 2 x pipeline 2 x data 2 on eight processes."""
    return run_trainers(job_spec(tensor=2, pipeline=2, data=2), shards, _observe)


def test_weights_start_the_same_in_every_layout(
    alone: dict[str, Any], grid: list[dict[str, Any]]
) -> None:
    assert alone["initial weights"]
    assert all(seen["initial weights"] for seen in grid)
    both_stages = set(grid[0]["names"]) | set(grid[-1]["names"])
    assert both_stages == set(alone["names"])
    assert not set(grid[0]["names"]) & set(grid[-1]["names"])


@pytest.mark.parametrize(
    ("schedule", "of_rank_0", "of_rank_1"),
    [("ZBVZeroBubble", [0, 3], [1, 2]), ("Interleaved1F1B", [0, 2], [1, 3])],
)
def test_two_chunks_keep_the_names_of_the_whole_model(
    schedule: str,
    of_rank_0: list[int],
    of_rank_1: list[int],
    alone: dict[str, Any],
    run_trainers: RunTrainers,
    job_spec: MakeSpec,
    shards: Any,
) -> None:
    """In V shape rank 0 has both ends; looped, every second layer."""
    spec = job_spec(pipeline=2, pipelineSchedule=schedule, virtualStages=2)
    first, second = run_trainers(spec, shards, _observe)
    assert first["initial weights"]
    assert second["initial weights"]
    assert sorted(first["names"] + second["names"]) == sorted(alone["names"])
    for seen, layers in ((first, of_rank_0), (second, of_rank_1)):
        found = {int(name.split(".")[1]) for name in seen["names"] if name.startswith("layers")}
        assert sorted(found) == layers
    assert ("output.weight" in first["names"]) == (schedule == "ZBVZeroBubble")


def test_one_process_communicates_nothing(alone: dict[str, Any]) -> None:
    assert sum(nbytes for _, nbytes in alone["collectives"].values()) == 0


def test_collectives_of_3d_equal_the_formula(grid: list[dict[str, Any]]) -> None:
    """Hand-counted for each stage: per rank and step, payloads of whole tensors."""
    layers, hidden, ffn, vocab, length, heads, kv = 2, 32, 48, 320, 16, 4, 2
    micro_batch, micro_batches, tensor = 2, 2, 2
    hidden_states = micro_batch * length * hidden * FLOAT64
    head = hidden // heads
    matrices = 2 * heads * head * hidden + 2 * kv * head * hidden + 3 * hidden * ffn
    block = matrices // tensor + 2 * hidden
    ends = {0: vocab * hidden // tensor, 1: vocab * hidden // tensor + hidden}
    for rank, seen in enumerate(grid):
        stage, found = rank // 4, seen["collectives"]
        parameters = (layers * block + ends[stage]) * FLOAT64
        # one bucket per block and one for the end of the stage
        assert found["dp", "all_gather"] == (layers + 1, parameters)
        assert found["dp", "reduce_scatter"] == (layers + 1, parameters)
        # attention and feed-forward, each gathered before and summed after, forward and backward;
        # the embedding is summed (gathered backward), the output gathered (summed backward)
        calls = micro_batches * (4 * layers + 1)
        assert found["tp", "all_gather"] == (calls, calls * hidden_states)
        assert found["tp", "reduce_scatter"] == (calls, calls * hidden_states)
        # each rank sends its part of the sequence, one way
        part = micro_batches * hidden_states // tensor
        assert found["pp", "send"] == (micro_batches, part)
        assert found["pp", "recv"] == (micro_batches, part)
        # squared norm and loss
        assert found["dp", "all_reduce"] == (1, 2 * FLOAT64)
        assert found["pp", "all_reduce"] == (1, 2 * FLOAT64)
        norms = 2 * layers + stage
        # gradients of norm scales and the squared norm; maximum, sum and target's logit per token
        tokens = micro_batch * length
        split_loss = 3 * micro_batches if stage else 0
        count = norms + 1 + split_loss
        nbytes = (norms * hidden + 1 + split_loss * tokens) * FLOAT64
        assert found["tp", "all_reduce"] == (count, nbytes)
        assert len(found) == 9
