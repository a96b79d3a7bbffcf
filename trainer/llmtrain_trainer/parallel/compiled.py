"""torch.compile per block, after a check of its results.

Blocks are compiled one by one. They have the same code, so one compilation serves all of them, and
FSDP's hooks around a block are not compiled. Compilers have been silently wrong (gradients of
tensor-parallel modules were off by a tenth). So one compiled block is compared with an eager one
first.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace

import torch
from torch import Tensor, nn

from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.errors import InputError, TrainerError
from llmtrain_trainer.model.decoder import Block, Decoder, StageSpec
from llmtrain_trainer.model.init import initialize

FIELD = "spec.training.compile"

MAX_RELATIVE_DIFFERENCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}
"""Relative difference, in norm, between the output or a gradient of a compiled block and of an
eager one. Fused operations round less often, which is visible in bfloat16."""


def compile_blocks(model: Decoder) -> None:
    """Compile the layers of a model chunk, in place. A layer is compiled when it first runs."""
    for block in model.blocks():
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]


def check_compiler(run: RunConfig, device: torch.device) -> None:
    """Compare a compiled layer with an eager one, forward and backward, before training starts.

    Raises InputError if nothing can be compiled, and TrainerError if the results differ.
    """
    # a pool of compiler processes per rank would import torch many times
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # never use the cache of an earlier rank: a killed rank leaves incomplete libraries (torch has
    # already set its default in the environment)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="llmtrain-compiled-")
    plain, compiled = _one_layer(run, device), _one_layer(run, device)
    compile_blocks(compiled)
    expected = _results(plain, run)
    try:
        found = _results(compiled, run)
    except Exception as error:  # the compiler raises any kind of error
        raise InputError(
            "CompileFailed",
            f"torch.compile cannot compile a layer: {str(error).strip().splitlines()[0]}",
            field=FIELD,
            remedy="use an image with a C++ compiler, or set compile to false",
        ) from error
    worst = max(
        float((a - b).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny))
        for a, b in zip(found, expected, strict=True)
    )
    if not worst <= MAX_RELATIVE_DIFFERENCE[run.precision]:
        raise TrainerError(
            "CompileMismatch",
            f"a compiled layer differs from the plain one by {worst:.1e} of its norm",
            field=FIELD,
            remedy="set compile to false",
        )


def _one_layer(run: RunConfig, device: torch.device) -> Decoder:
    """Return a whole first layer in the dtype of the run, with its initial weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if run.precision == "float64" else torch.float32)
    try:
        model = Decoder(run.architecture, StageSpec(0, 1, has_embedding=False, has_output=False))
    finally:
        torch.set_default_dtype(before)
    initialize(model, run.seed, run.architecture.layers, _copy)
    dtype = getattr(torch, run.precision)
    for block in model.blocks():
        block.to(dtype)
    model.document_masks = replace(model.document_masks, dtype=dtype)
    return model.to(device)


def _copy(parameter: nn.Parameter, whole: Tensor) -> None:
    parameter.copy_(whole)


def _results(model: Decoder, run: RunConfig) -> list[Tensor]:
    """Return the output for random hidden states and all gradients, in float64."""
    block: Block = next(model.blocks())
    generator = torch.Generator().manual_seed(run.seed)
    size = (run.micro_batch, run.sequence, run.architecture.hidden_size)
    weight = next(block.parameters())
    x = torch.randn(size, generator=generator).to(weight.device, weight.dtype).requires_grad_()
    if run.divides_documents:
        middle = run.sequence // 2
        documents = (torch.arange(run.sequence, device=x.device) >= middle).long()
        rotation, masks, _ = model.inside(documents.expand(run.micro_batch, -1))
        out = block(x, rotation, masks)
    else:
        out = block(x, model.rotary)
    out.backward(torch.randn(size, generator=generator).to(out.device, out.dtype))
    wanted = (out.detach(), x.grad, *(p.grad for p in block.parameters()))
    return [tensor.double() for tensor in wanted if tensor is not None]
