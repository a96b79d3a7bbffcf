"""From an architecture and a place in the grid to a module that is ready to train."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from llmtrain_core.pipeline_schedules import stage_numbers
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.model.decoder import Decoder, Slice
from llmtrain_trainer.model.init import initialise
from llmtrain_trainer.parallel.adapters import adapt
from llmtrain_trainer.parallel.compiled import compile_blocks, prove_compiler
from llmtrain_trainer.parallel.context import places, share_sequences
from llmtrain_trainer.parallel.experts import hidden_axis, mixtures, split_experts
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.parallel.model_parts import RankModel
from llmtrain_trainer.parallel.recompute import recompute
from llmtrain_trainer.parallel.tensor import split_tensors
from llmtrain_trainer.parallel.workarounds import sum_gradients


def build_model(run: RunConfig, grid: Grid, device: torch.device) -> RankModel:
    """Build what this rank holds of the model, with its initial weights."""
    if run.compile:
        prove_compiler(run, device)
    ranks = grid.degree("pp")
    numbers = stage_numbers(run.schedule, grid.coordinate("pp"), ranks, run.chunks)
    count = ranks * len(numbers)
    model = RankModel(
        [
            _build_chunk(Slice.stage(run.architecture, number, count), run, grid, device)
            for number in numbers
        ]
    )
    initialise(model, run.seed, run.architecture.layers, _keep_shard)
    return model


def _build_chunk(part: Slice, run: RunConfig, grid: Grid, device: torch.device) -> Decoder:
    """Build one slice: parallelism, adapters, compiler, recomputation, FSDP, storage.

    The module is made on the meta device, so that no rank ever holds more than its shard and one
    whole parameter.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if run.precision == "float64" else torch.float32)
    try:
        with torch.device("meta"):
            chunk = Decoder(run.architecture, part)
    finally:
        torch.set_default_dtype(before)
    if "tp" in grid.groups:
        split_tensors(chunk, grid.mesh["tp"])
    split_experts(chunk, run, grid)
    if run.lora is not None:
        adapt(chunk, run.lora)
    if "cp" in grid.groups:
        share_sequences(chunk, grid.groups["cp"])
    if run.compile:
        compile_blocks(chunk)
    recompute(chunk, run.recompute)
    _shard(chunk, run, grid)
    sum_gradients(chunk, device.type)
    chunk.to_empty(device=device)
    chunk.place(places(run.sequence, grid.coordinate("cp"), grid.degree("cp")))
    return chunk


def _shard(chunk: Decoder, run: RunConfig, grid: Grid) -> None:
    """Apply FSDP2 to every block, its experts and the rest, also where the data degree is one.

    One path for every layout: parameters are always DTensors and the mixed-precision policy is
    always FSDP's. Under a pipeline, gathered parameters are kept between micro-batches.
    """
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if run.precision == "bfloat16"
        else MixedPrecisionPolicy()
    )
    mesh = grid.mesh["dp"]
    again = grid.degree("pp") == 1
    for mixture in mixtures(chunk):
        fully_shard(
            mixture.experts,
            mesh=mesh if grid.expert_mesh is None else grid.expert_mesh["edp"],
            mp_policy=policy,
            reshard_after_forward=again,
            shard_placement_fn=hidden_axis(mixture.experts),
        )
    for block in chunk.blocks():
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=again)
    fully_shard(chunk, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def _keep_shard(parameter: nn.Parameter, whole: Tensor) -> None:
    """Copy this rank's shard of `whole`, which every rank has, into `parameter`."""
    if isinstance(parameter, DTensor):
        mine = distribute_tensor(
            whole, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        parameter.to_local().copy_(mine.to_local())
    else:
        parameter.copy_(whole)
