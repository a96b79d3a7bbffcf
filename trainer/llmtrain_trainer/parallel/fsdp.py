"""FSDP2: shard parameters, gradients and optimizer state over the data ranks."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.parallel.dtensors import local_shard
from llmtrain_trainer.parallel.experts import expert_shard_placement, moe_layers
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.parallel.model_parts import ModelParts


def apply_fsdp(chunk: Decoder, run: RunConfig, grid: Grid) -> None:
    """Shard every block, its experts and the rest of a model chunk, in place.

    FSDP is applied even if the data degree is one. Parameters are then always DTensors, and the
    mixed-precision policy is always FSDP's. With a pipeline, gathered parameters are kept between
    micro-batches.
    """
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if run.precision == "bfloat16"
        else MixedPrecisionPolicy()
    )
    mesh = grid.mesh["fsdp"]
    reshard = grid.degree("pipeline") == 1
    for moe in moe_layers(chunk):
        fully_shard(
            moe.experts,
            mesh=mesh if grid.expert_mesh is None else grid.expert_mesh["efsdp"],
            mp_policy=policy,
            reshard_after_forward=reshard,
            shard_placement_fn=expert_shard_placement(moe.experts),
        )
    for block in chunk.blocks():
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(chunk, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def units(model: ModelParts) -> list[tuple[str, FSDPModule]]:
    """Return the name and module of each FSDP unit. A unit is before those inside it."""
    return [
        (f"{index}.{name}", module)
        for index, chunk in enumerate(model.chunks)
        for name, module in chunk.named_modules()
        if isinstance(module, FSDPModule)
    ]


def unit_bytes(model: ModelParts) -> list[int]:
    """Return the bytes of this rank's gradients of each FSDP unit that has any."""
    counted: set[nn.Parameter] = set()
    found = []
    for _, unit in reversed(units(model)):  # a unit comes after those inside it
        assert isinstance(unit, nn.Module)
        own = [each for each in unit.parameters() if each.requires_grad and each not in counted]
        counted.update(own)
        found.append(sum(local_shard(each.detach()).nbytes for each in own))
    return [nbytes for nbytes in found if nbytes]
