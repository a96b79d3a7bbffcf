"""Bytes per token of the activations that autograd saves for the backward pass.

They are the sum over the tensors of the trainer's block. A test compares the sum with
`torch.autograd.graph.saved_tensors_hooks`. With equal head counts and 16 bits it is
s b h (16 + 8 f / h). Sequence parallelism shards the activations between the tensor-parallel
regions (Korthikanti et al., arXiv:2205.05198), so every term of this formula is divided by t.
"""

from __future__ import annotations

from llmtrain_core.plan.model.model_shape import ModelShape
from llmtrain_core.plan.model.parameters import PipelineStage
from llmtrain_core.plan.training_setup import Checkpointing, Kernels

FLOAT32 = 4
INDEX = 8


def block_bytes_per_token(
    shape: ModelShape, tensor: int, compute: int, checkpointing: Checkpointing, kernels: Kernels
) -> float:
    """Return the bytes that one layer saves per token of its tensor group, on each rank of it.

    none: all tensors that autograd saves. selective: inputs and outputs of products and of
    attention, and inputs of norms; operations without a product are recomputed. full: the input of
    the layer.
    """
    hidden = shape.hidden_size
    if checkpointing == "full":
        return compute * hidden / tensor
    parts = attention_bytes(shape, compute) + compute * hidden
    heads = shape.query_width + shape.key_width if shape.qk_norm else 0
    inputs = compute * hidden  # of the feed-forward block; that of attention is in `parts`
    whole = 0.0 if kernels == "fused" else gathered_input_bytes(shape, tensor, compute)
    whole += routed_bytes(shape, compute)
    if checkpointing == "selective":
        ffn = (2 if shape.gated else 1) * compute * shape.ffn_size * shape.experts_per_token
        kept = compute * (2 * hidden + heads)
        return (kept + parts + inputs + ffn) / tensor + whole
    norms = 2 * norm_bytes(shape, compute)
    if heads:
        each = rms_norm_bytes(shape.head_width, compute)
        norms += heads // shape.head_width * each
    return (norms + parts + inputs + ffn_bytes(shape, compute, kernels)) / tensor + whole


def attention_bytes(shape: ModelShape, compute: int) -> float:
    """Return the bytes of query, key, value, attention output and the log-sum-exp.

    This is for flash attention. Without it, the scores would add 5 a s / h (Korthikanti et al.,
    table 2).
    """
    projections = 2 * shape.query_width + 2 * shape.key_width
    return compute * projections + FLOAT32 * shape.heads


def ffn_bytes(shape: ModelShape, compute: int, kernels: Kernels) -> float:
    """Return the bytes of the inner activations of each expert.

    With a gate: gate, its activation, up and their product; fused and compiled kernels do not save
    the activation. Without a gate: the values before and after the activation.
    """
    tensors = 2 if not shape.gated else 4 if kernels == "eager" else 3
    return compute * shape.ffn_size * tensors * shape.experts_per_token


def routed_bytes(shape: ModelShape, compute: int) -> float:
    """Return the additional bytes of a mixture of experts, on every rank of a tensor group.

    For each selected expert: its input row and its output, the source and destination indices of
    the row, the index of the expert, and three weights. In addition, the softmax over all experts.
    """
    if shape.experts == 1:
        return 0.0
    visit = 2 * compute * shape.hidden_size + 3 * INDEX + 2 * FLOAT32 + compute
    return shape.experts_per_token * visit + FLOAT32 * shape.experts


def norm_bytes(shape: ModelShape, compute: int) -> float:
    """Return the bytes that a norm of the residual stream saves.

    A LayerNorm saves its input, mean and scale.
    """
    if shape.norm == "layer":
        return compute * shape.hidden_size + 2 * FLOAT32
    return rms_norm_bytes(shape.hidden_size, compute)


def rms_norm_bytes(width: int, compute: int) -> float:
    """Return the bytes that an RMSNorm saves for each vector: its input, and a scale in float32.

    This is for a GPU, where it is one kernel (torch 2.9 and later). On a CPU it is several kernels
    in float32, which save the input and the normalised input in that type.
    """
    return compute * width + FLOAT32


def gathered_input_bytes(shape: ModelShape, tensor: int, compute: int) -> float:
    """Return the additional bytes of inputs that are saved gathered, with the whole sequence.

    There are two regions, each with the shards of the other t - 1 ranks. Megatron-LM gathers again
    instead.
    """
    return 2 * compute * shape.hidden_size * (tensor - 1) / tensor


def boundary_bytes_per_token(
    shape: ModelShape, tensor: int, compute: int, stage: PipelineStage
) -> float:
    """Return the bytes that the final norm and the output projection save."""
    if not stage.predicts:
        return 0.0
    norm = norm_bytes(shape, compute) / tensor
    return norm + compute * shape.hidden_size
