"""torch.compile, block by block, behind a gate.

Blocks are compiled one by one: they are alike, so one compilation serves all of them, and what FSDP
does around a block stays outside. Compilers have been wrong without a word (with tensor-parallel
modules gradients were off by a tenth), so a block must first prove itself against the plain one.
"""

from __future__ import annotations

import os
import tempfile

import torch
from torch import Tensor, nn

from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.errors import InputError, TrainerError
from llmtrain_trainer.model.decoder import Block, Decoder, Slice
from llmtrain_trainer.model.init import initialise

FIELD = "spec.training.compile"

LARGEST_DIFFERENCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}
"""Relative difference, in norm, of a compiled block's output or gradient from the plain one's.
Fused operations round less often, which shows in bfloat16."""


def compile_blocks(model: Decoder) -> None:
    """Compile the layers of a slice, in place; each when it first runs."""
    for block in model.blocks():
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]


def prove_compiler(run: RunConfig, device: torch.device) -> None:
    """Compare one compiled layer with a plain one, forward and backward, before training starts.

    Raises InputError where nothing can be compiled, and TrainerError where the results differ.
    """
    # a pool of compiling processes per rank would import torch many times over
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # never the cache of an earlier rank: one that was killed leaves half a library behind (torch
    # has put its default into the environment by now)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="llmtrain-compiled-")
    plain, compiled = _one_layer(run, device), _one_layer(run, device)
    compile_blocks(compiled)
    expected = _results(plain, run)
    try:
        found = _results(compiled, run)
    except Exception as error:  # the compiler raises whatever its parts do
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
    if not worst <= LARGEST_DIFFERENCE[run.precision]:
        raise TrainerError(
            "CompileMismatch",
            f"a compiled layer differs from the plain one by {worst:.1e} of its norm",
            field=FIELD,
            remedy="set compile to false",
        )


def _one_layer(run: RunConfig, device: torch.device) -> Decoder:
    """Return a whole first layer in the type of the products, with its initial weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if run.precision == "float64" else torch.float32)
    try:
        model = Decoder(run.architecture, Slice(0, 1, embeds=False, predicts=False))
    finally:
        torch.set_default_dtype(before)
    initialise(model, run.seed, run.architecture.layers, _copy)
    for block in model.blocks():
        block.to(getattr(torch, run.precision))
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
    out = block(x, model.rotary)
    out.backward(torch.randn(size, generator=generator).to(out.device, out.dtype))
    wanted = (out.detach(), x.grad, *(p.grad for p in block.parameters()))
    return [tensor.double() for tensor in wanted if tensor is not None]
