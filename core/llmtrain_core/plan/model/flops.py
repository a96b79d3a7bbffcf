"""FLOPs of training, in two conventions.

The conventions differ by a factor of two in the attention term, so a utilization must name its
convention. Norms, the softmax and recomputation of activations are not counted.
"""

from __future__ import annotations

from typing import Literal, get_args

from llmtrain_core.api.job import Architecture
from llmtrain_core.plan.model.model_shape import ModelShape, shape_of
from llmtrain_core.plan.model.parameters import count_parameters

Convention = Literal["full-attention", "causal-attention"]
"""`full-attention` ignores that the causal mask zeroes half of the scores (PaLM, arXiv:2204.02311,
appendix B; nanoGPT, torchtitan). `causal-attention` counts the unmasked half only (Megatron-LM)."""

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)


def training_flops_per_token(
    architecture: Architecture | ModelShape, convention: Convention, span: float | None = None
) -> int:
    """Return FLOPs (multiply and add are two) of one forward and backward pass per token.

    6 N' for the weight products (2 forward, 4 backward) plus, per layer, 12 T Q for scores and
    weighted values, with T the tokens that attend to each other and Q = heads x headDim; half of it
    when causal. T is `span`, the mean over the tokens of the length of their document, or the
    sequence length. Frozen weights have no gradient of their own: 4 N', and 6 for each parameter of
    an adapter.
    """
    shape = shape_of(architecture)
    count = count_parameters(shape)
    length = shape.sequence_length if span is None else span
    attention = int(12 * shape.layers * shape.query_width * length)
    if convention == "causal-attention":
        attention //= 2
    if count.adapters:
        return 4 * count.multiplied + 6 * count.adapters + attention
    return 6 * count.multiplied + attention


def days_at(flops: float, gpus: int, peak: float, utilization: float) -> float:
    """Return the days that `gpus` of a peak FLOP/s at a utilisation need for `flops`."""
    return flops / (gpus * peak * utilization) / 86400
