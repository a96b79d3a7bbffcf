"""Every layout computes what one process computes, and says exactly what it communicates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.torch

FLOAT64 = 8


def _observe(trainer: Any) -> dict[str, Any]:
    """Initial weights, six steps (one of them metered), held-out losses."""
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
    before = trainer.evaluate()
    reports = [trainer.take_step(sampled=step == 3) for step in range(6)]
    return {
        "initial weights": equal,
        "names": [name for name, _ in trainer.model.named_parameters()],
        "losses": [report.loss for report in reports],
        "norms": [report.grad_norm for report in reports],
        "held out": (before, trainer.evaluate()),
        "collectives": {(s.group, s.op): (s.count, s.nbytes) for s in reports[3].collectives},
    }


@pytest.fixture(scope="module")
def alone(
    run_trainers: Callable[..., Any], job_spec: Callable[..., Any], shards: Any
) -> dict[str, Any]:
    return run_trainers(job_spec(), shards, _observe)[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def grid(
    run_trainers: Callable[..., Any], job_spec: Callable[..., Any], shards: Any
) -> list[dict[str, Any]]:
    """tensor 2 x pipeline 2 x data 2 on eight processes."""
    spec = job_spec(tensor=2, pipeline=2, data=2)
    return run_trainers(spec, shards, _observe)  # type: ignore[no-any-return]


def _assert_same(seen: dict[str, Any], alone: dict[str, Any]) -> None:
    assert seen["losses"] == pytest.approx(alone["losses"], rel=0, abs=1e-12)
    assert seen["norms"] == pytest.approx(alone["norms"], rel=1e-10)
    assert seen["held out"] == pytest.approx(alone["held out"], rel=0, abs=1e-12)


def test_eight_ranks_in_3d_equal_one_process(
    alone: dict[str, Any], grid: list[dict[str, Any]]
) -> None:
    for seen in grid:
        _assert_same(seen, alone)
    print("loss", max(abs(a - b) for a, b in zip(grid[0]["losses"], alone["losses"], strict=True)))


def test_training_changes_the_loss(alone: dict[str, Any]) -> None:
    """A parity of models that do not train would prove nothing."""
    assert abs(alone["losses"][0] - alone["losses"][-1]) > 1e-3
    assert min(alone["norms"]) > 1e-3


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ({"tensor": 2}, {"architecture": {"tiedEmbeddings": True}}),
        ({"pipeline": 2}, {}),
        ({"pipeline": 2, "pipelineSchedule": "GPipe"}, {}),
        ({"data": 2}, {"training": {"activationCheckpointing": "full"}}),
    ],
    ids=["tensor, tied embeddings", "1F1B", "GPipe", "data, full recomputation"],
)
def test_two_ranks_equal_one_process(
    layout: dict[str, Any], changes: dict[str, Any], alone: dict[str, Any],
    run_trainers: Callable[..., Any], job_spec: Callable[..., Any], shards: Any,
) -> None:  # fmt: skip
    if "architecture" in changes:
        alone = run_trainers(job_spec(**changes), shards, _observe)[0]
    seen = run_trainers(job_spec(**layout, **changes), shards, _observe)
    for one in seen:
        _assert_same(one, alone)
        assert one["initial weights"]


def test_weights_start_the_same_in_every_layout(
    alone: dict[str, Any], grid: list[dict[str, Any]]
) -> None:
    assert alone["initial weights"]
    assert all(seen["initial weights"] for seen in grid)
    both_stages = set(grid[0]["names"]) | set(grid[-1]["names"])
    assert both_stages == set(alone["names"])
    assert not set(grid[0]["names"]) & set(grid[-1]["names"])


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
