"""From an architecture and a place in the grid to a module that is ready to train."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.model.init import initialise
from llmtrain_trainer.model.llama import Llama, Slice
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.parallel.tensor import split_tensors
from llmtrain_trainer.parallel.workarounds import sum_gradients


def build_model(run: RunConfig, grid: Grid, device: torch.device) -> Llama:
    """Build this rank's slice: tensor parallelism, recomputation, FSDP, then weights.

    The module is made on the meta device, so that no rank ever holds more than its shard and one
    whole parameter.
    """
    part = Slice.stage(run.architecture.layers, grid.coordinate("pp"), grid.degree("pp"))
    wide = torch.float64 if run.precision == "float64" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(wide)
    try:
        with torch.device("meta"):
            model = Llama(run.architecture, part)
    finally:
        torch.set_default_dtype(before)
    if grid.degree("tp") > 1:
        split_tensors(model, grid.mesh["tp"])
    if run.recompute == "full":
        for block in model.blocks():
            # not a wrapper module: names of parameters must not depend on it
            forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
            block.forward = forward  # type: ignore[method-assign]
    _shard(model, run, grid)
    sum_gradients(model, device.type)
    model.to_empty(device=device)
    model.rotary.fill()
    initialise(model, run.seed, run.architecture.layers, _keep_shard)
    return model


def _shard(model: Llama, run: RunConfig, grid: Grid) -> None:
    """Apply FSDP2 to every block and to the rest, also where the data degree is one.

    One path for every layout: parameters are always DTensors and the mixed-precision policy is
    always FSDP's. Under a pipeline, gathered parameters are kept between micro-batches.
    """
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if run.precision == "bfloat16"
        else MixedPrecisionPolicy()
    )
    mesh = grid.shard_mesh()
    again = grid.degree("pp") == 1
    for block in model.blocks():
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=again)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def _keep_shard(parameter: nn.Parameter, whole: Tensor) -> None:
    """Copy this rank's shard of `whole`, which every rank has, into `parameter`."""
    if isinstance(parameter, DTensor):
        mine = distribute_tensor(
            whole, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        parameter.to_local().copy_(mine.to_local())
    else:
        parameter.copy_(whole)
