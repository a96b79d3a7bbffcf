"""Bytes of activations that autograd keeps for the backward pass, per token.

Counted tensor by tensor for the trainer's block; a test holds the count against
`torch.autograd.graph.saved_tensors_hooks`. With equal head counts and 16 bits it is the familiar
s b h (16 + 8 f / h). Sequence parallelism divides what lies between the tensor-parallel regions
(Korthikanti et al., arXiv:2205.05198): with it every term but none is over t.
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
    """Return what one layer keeps per token of its tensor group, on each rank of it.

    none: everything autograd asks for. selective: inputs and outputs of products and of attention,
    and the inputs of norms; what costs no product is computed again. full: the layer's input.
    """
    hidden = shape.hidden_size
    if checkpointing == "full":
        return compute * hidden / tensor
    parts = attention_bytes(shape, compute) + compute * hidden
    heads = shape.query_width + shape.key_width if shape.qk_norm else 0
    inputs = compute * hidden  # of the feed-forward block; attention's is in `parts`
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
    """Return query, key, value, mixed values and the log-sum-exp of flash attention.

    Without flash attention the scores would add 5 a s / h (Korthikanti et al., table 2).
    """
    projections = 2 * shape.query_width + 2 * shape.key_width
    return compute * projections + FLOAT32 * shape.heads


def ffn_bytes(shape: ModelShape, compute: int, kernels: Kernels) -> float:
    """Return the inner activations: gate, its activation, up and their product, of each expert.

    A fused or compiled gate does not keep the activation. Ungated: before and after it.
    """
    tensors = 2 if not shape.gated else 4 if kernels == "eager" else 3
    return compute * shape.ffn_size * tensors * shape.experts_per_token


def routed_bytes(shape: ModelShape, compute: int) -> float:
    """Return what a mixture of experts keeps beside them, on every rank of a tensor group.

    For each visit the row as the expert gets it and its answer, and where it came from and went
    (two indices, the choice, and three weights); and the softmax over all experts.
    """
    if shape.experts == 1:
        return 0.0
    visit = 2 * compute * shape.hidden_size + 3 * INDEX + 2 * FLOAT32 + compute
    return shape.experts_per_token * visit + FLOAT32 * shape.experts


def norm_bytes(shape: ModelShape, compute: int) -> float:
    """Return what a norm of the residual stream keeps; LayerNorm, its input, mean and scale."""
    if shape.norm == "layer":
        return compute * shape.hidden_size + 2 * FLOAT32
    return rms_norm_bytes(shape.hidden_size, compute)


def rms_norm_bytes(width: int, compute: int) -> float:
    """Return what an RMSNorm keeps of each vector: its input, and a scale in float32.

    It is one kernel on a GPU (torch 2.9 and later). On a CPU it is several, in float32, and keeps
    the input and the normalised input in that type.
    """
    return compute * width + FLOAT32


def gathered_input_bytes(shape: ModelShape, tensor: int, compute: int) -> float:
    """Return the extra of inputs that are kept gathered: products hold the whole sequence.

    Two regions, each with the share of the other t - 1 ranks; Megatron-LM gathers again instead.
    """
    return 2 * compute * shape.hidden_size * (tensor - 1) / tensor


def boundary_bytes_per_token(
    shape: ModelShape, tensor: int, compute: int, stage: PipelineStage
) -> float:
    """Return what the ends of the model keep: the final norm and the input of the output."""
    if not stage.predicts:
        return 0.0
    norm = norm_bytes(shape, compute) / tensor
    return norm + compute * shape.hidden_size
