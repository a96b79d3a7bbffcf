"""The training loop of a rank: its checks and its measurements."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.errors import InputError, TrainerError

pytestmark = pytest.mark.torch

RunTrainers = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]


def test_pods_with_different_data_do_not_train(
    shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    def train(trainer: Any) -> tuple[str, str | None, bool]:
        if trainer.grid.coordinate("data") == 1:
            trainer.data = replace(trainer.data, digest="other")
        try:
            trainer.train()
        except InputError as error:
            return error.reason, error.field, "[1]" in error.message
        raise AssertionError("trained")

    expected = [("CorpusMismatch", "spec.data.sources", True)] * 2
    assert run_trainers(job_spec(data=2), shards, train) == expected


@pytest.mark.parametrize("layout", [{"data": 2}, {"pipeline": 2}, {"tensor": 2}], ids=str)
def test_a_non_finite_loss_stops_all_ranks_before_the_weights_change(
    layout: dict[str, int],
    tmp_path: Path,
    shards: Any,
    run_trainers: RunTrainers,
    job_spec: MakeSpec,
    parameter_hash: Callable[[Any], str],
) -> None:
    checkpoint = {"uri": f"file://{tmp_path}", "everySteps": 1}

    def train(trainer: Any) -> tuple[str, bool, bool]:
        import torch
        import torch.distributed as dist

        trainer.take_step()
        if dist.get_rank() == 1:
            with torch.no_grad():
                trainer.parameters[0].to_local().fill_(float("nan"))
        before = parameter_hash(trainer)
        names: list[Any] = [None, None]
        dist.all_gather_object(names, next(iter(trainer.model.named_parameters()))[0])
        try:
            trainer.train()
        except TrainerError as error:
            unchanged = parameter_hash(trainer) == before
            is_named = "step 2" in error.message and f"rank 1, weight {names[1]} (" in error.message
            return error.reason, is_named, unchanged
        raise AssertionError("trained")

    spec = job_spec(**layout, checkpoint=checkpoint)
    assert run_trainers(spec, shards, train) == [("LossNotFinite", True, True)] * 2
    assert not list(tmp_path.glob("step-*"))


@pytest.mark.parametrize(
    ("layout", "first"), [({"data": 2}, 0), ({"pipeline": 2}, 2), ({"tensor": 2}, 0)], ids=str
)
def test_the_first_module_with_a_non_finite_output_is_named(
    layout: dict[str, int], first: int, shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    """Not the later errors of other ranks. A fault that does not recur is reported as such."""

    def train(trainer: Any) -> tuple[str, str]:
        import torch.distributed as dist

        name = f"layers.{first}.attention.wv"
        messages = []
        for passing in (False, True):
            module = dict(trainer.model.named_modules())[name] if dist.get_rank() == 1 else None
            if module is not None:
                calls = iter([math.nan] + [1.0 if passing else math.nan] * 1000)
                handle = module.register_forward_hook(lambda m, i, out, c=calls: out * next(c))
            with pytest.raises(TrainerError) as raised:
                trainer.take_step()
            if module is not None:
                handle.remove()
            trainer.optimizer.zero_grad()
            messages.append(raised.value.message)
        return messages[0], messages[1]

    for origin, passing in run_trainers(job_spec(**layout), shards, train):
        assert f"first in rank 1, output of layers.{first}.attention.wv (" in origin
        assert "a transient fault" in passing


def test_non_finite_weights_are_not_saved(
    tmp_path: Path, shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    """A step with a finite loss can produce them through the optimizer's state."""

    def train(trainer: Any) -> str:
        import torch.distributed as dist

        trainer.take_step()
        if dist.get_rank() == 1:
            weight = trainer.parameters[-1]
            trainer.optimizer.state[weight]["exp_avg"].to_local().fill_(math.inf)
        with pytest.raises(TrainerError) as raised:
            trainer.train()
        return f"{raised.value.reason}: {raised.value.message}"

    checkpoint = {"uri": f"file://{tmp_path}", "everySteps": 1}
    for message in run_trainers(job_spec(data=2, checkpoint=checkpoint), shards, train):
        assert message.startswith(
            "WeightsNotFinite: after step 2, not saved: first in rank 1, weight"
        )
    assert not list(tmp_path.glob("*/.metadata"))


def test_the_step_that_connects_the_groups_is_not_sampled(
    shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    """Nor is the first step after a resume, at any step."""
    from llmtrain_trainer.runtime.reports import StepReport

    def train(trainer: Any) -> list[int]:
        trainer.step = 11
        trainer.train()
        steps = [report for report in trainer.sent if isinstance(report, StepReport)]
        return [report.step for report in steps if report.collectives]

    spec = job_spec(data=2, training={"steps": 14})
    assert run_trainers(spec, shards, train) == [[13], [13]]


def test_bfloat16_computes_in_16_bits_and_updates_float32(
    shards: Any, run_trainers: Callable[..., list[Any]], job_spec: Callable[..., dict[str, Any]]
) -> None:
    """Weights keep updates that are too small for bfloat16, and so does the optimizer's state."""

    def body(trainer: Any) -> list[Any]:
        import torch

        computed: set[torch.dtype] = set()
        for block in trainer.model.layers.values():
            block.register_forward_hook(lambda *seen: computed.add(seen[-1].dtype))
        before = {name: each.detach().clone() for name, each in trainer.model.named_parameters()}
        trainer.take_step()
        kept = {each.dtype for each in trainer.parameters}
        kept |= {
            value.dtype
            for state in trainer.optimizer.state.values()
            for value in state.values()
            if value.dim()
        }
        lost = sum(
            int(((now != old) & (now.bfloat16() == old.bfloat16())).to_local().sum())
            for name, now in trainer.model.named_parameters()
            for old in [before[name]]
        )
        return [computed == {torch.bfloat16}, kept == {torch.float32}, lost > 0]

    spec = job_spec(data=2, precision="bfloat16", training={"optimizer": {"learningRate": 1e-6}})
    assert run_trainers(spec, shards, body) == [[True, True, True]] * 2


def test_the_update_of_shards_is_that_of_torch(
    shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    """To the bit, also where a rank has an empty shard; state is placed like its parameter."""

    def body(trainer: Any) -> list[bool]:
        import torch
        from torch.distributed.tensor import Shard, distribute_tensor

        from llmtrain_trainer.training.optimizer import ShardedAdamW

        mesh = trainer.grid.mesh["fsdp"]
        wholes = [torch.randn(size, dtype=torch.float64) for size in ((7, 5), (1, 3))]
        pairs, optimizers = [], []
        for kind in (ShardedAdamW, torch.optim.AdamW):
            learning = [
                torch.nn.Parameter(distribute_tensor(each, mesh, [Shard(0)])) for each in wholes
            ]
            unused = torch.nn.Parameter(torch.zeros(3))
            optimizers.append(kind([*learning, unused], lr=0.1, weight_decay=0.2, fused=True))
            pairs.append(learning)
        for factor in (1.0, -3.0):
            for learning, optimizer in zip(pairs, optimizers, strict=True):
                for each in learning:
                    each.grad = each.detach() * factor
                optimizer.step()
        own, other = (
            [
                part
                for parameter in learning
                for part in (parameter.detach(), *optimizer.state[parameter].values())
            ]
            for learning, optimizer in zip(pairs, optimizers, strict=True)
        )
        assert len(own) == len(other) == 8
        assert len(optimizers[0].state) == 2
        return [_as_local(a) == _as_local(b) for a, b in zip(own, other, strict=True)]

    assert run_trainers(job_spec(data=2), shards, body) == [[True] * 8] * 2


def _as_local(value: Any) -> tuple[Any, ...]:
    """Return placement, whole shape and local numbers of a tensor."""
    from torch.distributed.tensor import DTensor

    if not isinstance(value, DTensor):
        return (value.dtype, value.tolist())
    return (value.dtype, value.placements, value.shape, value.stride(), value.to_local().tolist())
