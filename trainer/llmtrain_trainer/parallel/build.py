"""Build this rank's part of the model, parallelized and initialized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmtrain_core.pipeline_schedules import stage_numbers
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.model.decoder import Decoder, StageSpec
from llmtrain_trainer.model.init import initialize
from llmtrain_trainer.parallel.adapters import apply_lora
from llmtrain_trainer.parallel.compiled import check_compiler, compile_blocks
from llmtrain_trainer.parallel.context import apply_context_parallel, token_positions
from llmtrain_trainer.parallel.document_kernel import has_ragged_kernel
from llmtrain_trainer.parallel.dtensors import shard_like
from llmtrain_trainer.parallel.experts import apply_expert_parallel
from llmtrain_trainer.parallel.forward_backward import ForwardBackward, SequentialForwardBackward
from llmtrain_trainer.parallel.fsdp import apply_fsdp
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.parallel.model_parts import ModelParts
from llmtrain_trainer.parallel.pipeline import PipelineForwardBackward
from llmtrain_trainer.parallel.recompute import apply_activation_checkpointing
from llmtrain_trainer.parallel.tensor import apply_tensor_parallel
from llmtrain_trainer.parallel.workarounds import disable_gradient_averaging


def build_model(run: RunConfig, grid: Grid, device: torch.device) -> ModelParts:
    """Build the model chunks of this rank, with their initial weights."""
    if run.compile:
        check_compiler(run, device)
    ragged = run.divides_documents and has_ragged_kernel(run, device)
    ranks = grid.degree("pipeline")
    numbers = stage_numbers(run.schedule, grid.coordinate("pipeline"), ranks, run.chunks)
    count = ranks * len(numbers)
    model = ModelParts(
        [
            _build_chunk(StageSpec.of_stage(run.architecture, number, count), run, grid, device)
            for number in numbers
        ]
    )
    for chunk in model.chunks:
        chunk.document_masks = replace(
            chunk.document_masks, dtype=getattr(torch, run.precision), ragged=ragged
        )
    initialize(model, run.seed, run.architecture.layers, _copy_shard)
    return model


def build_forward_backward(
    model: ModelParts,
    run: RunConfig,
    grid: Grid,
    device: torch.device,
    complete_gradients: Callable[[], None],
) -> ForwardBackward:
    """Return the forward and backward passes of a layout.

    A backward pass ends with `complete_gradients`.
    """
    if "pp" in grid.groups:
        return PipelineForwardBackward(model, run, grid, device, complete_gradients)
    return SequentialForwardBackward(model.chunks[0], run, grid, complete_gradients)


def _build_chunk(stage: StageSpec, run: RunConfig, grid: Grid, device: torch.device) -> Decoder:
    """Build one model chunk.

    Tensor and expert parallelism, adapters, context parallelism, the compiler, recomputation and
    FSDP are applied in this order. The module is built on the meta device, so a rank never holds
    more than its shard and one whole parameter.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if run.precision == "float64" else torch.float32)
    try:
        with torch.device("meta"):
            chunk = Decoder(run.architecture, stage)
    finally:
        torch.set_default_dtype(before)
    if "tp" in grid.groups:
        apply_tensor_parallel(chunk, grid.mesh["tp"])
    apply_expert_parallel(chunk, run, grid)
    if run.lora is not None:
        apply_lora(chunk, run.lora)
    if "cp" in grid.groups:
        apply_context_parallel(chunk, grid.groups["cp"])
    if run.compile:
        compile_blocks(chunk)
    apply_activation_checkpointing(chunk, run.recompute)
    apply_fsdp(chunk, run, grid)
    disable_gradient_averaging(chunk, device.type)
    chunk.to_empty(device=device)
    positions = token_positions(run.sequence, grid.coordinate("context"), grid.degree("context"))
    chunk.set_token_positions(positions)
    return chunk


def _copy_shard(parameter: nn.Parameter, whole: Tensor) -> None:
    """Copy this rank's shard of `whole` into `parameter`. Every rank has `whole`."""
    if isinstance(parameter, DTensor):
        parameter.to_local().copy_(shard_like(whole, parameter))
    else:
        parameter.copy_(whole)
