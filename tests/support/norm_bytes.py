"""Bytes that torch keeps where it computes a norm in parts."""

from __future__ import annotations

from llmtrain_core.plan.model.model_shape import ModelShape


def norm_bytes(shape: ModelShape, compute: int) -> int:
    """Bytes per token that RMSNorm keeps where it is not one kernel, as on a CPU: its input and the
    normalised input in float32, in place of its input."""
    if shape.norm == "layer":
        return 0
    widths = 2 * shape.hidden_size
    if shape.qk_norm:
        widths += shape.query_width + shape.key_width
    return (2 * 4 - compute) * widths
