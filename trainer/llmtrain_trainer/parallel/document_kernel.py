"""The choice of the kernel for attention inside documents.

On GPUs and in bfloat16, torch has a kernel of variable length, which computes the pairs inside
documents only. It is compared with an additive mask before training starts: a kernel that is
missing on a GPU, or wrong, must not decide the results. Everything else uses additive masks.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.model.documents import MaskBuilder, masked_attention

MAX_RELATIVE_DIFFERENCE = 2e-2
"""Of the output or a gradient in bfloat16 to those of an additive mask, in norm."""

_ENDS = (1, 40, 41, 100, 128)
"""Ends of the documents of the comparison: one of a single token, and one across stretches."""

log = logging.getLogger(__name__)


def has_ragged_kernel(run: RunConfig, device: torch.device) -> bool:
    """Return True if the kernel of variable length works on this device, forward and backward."""
    if device.type != "cuda" or run.precision != "bfloat16":
        return False
    shape = run.architecture
    try:
        worst = ragged_difference(shape.heads, shape.key_value_heads, shape.head_width, device)
    except Exception as error:  # a kernel that is missing raises any kind of error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        log.warning("no attention of variable length here, so masks are used: %.300s", lines[0])
        return False
    if not worst <= MAX_RELATIVE_DIFFERENCE:
        log.warning("attention of variable length is off by %.1e, so masks are used", worst)
        return False
    return True


def ragged_difference(
    heads: int,
    key_heads: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> float:
    """Return the largest relative difference of outputs and gradients between the two masks."""
    length = _ENDS[-1]
    numbers = torch.bucketize(torch.arange(length), torch.tensor(_ENDS), right=True)
    documents = numbers.expand(2, length).to(device)
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.randn(2, count, length, width, generator=generator).to(device, dtype)
        for count in (heads, key_heads, key_heads, heads)
    ]
    worst = 0.0
    for stretch in (range(length), range(64, length)):
        masks = MaskBuilder((stretch,), dtype)
        expected = _results(given, documents, masks)
        found = _results(given, documents, replace(masks, ragged=True))
        for a, b in zip(found, expected, strict=True):
            worst = max(worst, float((a - b).norm() / b.norm()))
    return worst


def _results(given: list[Tensor], documents: Tensor, masks: MaskBuilder) -> list[Tensor]:
    """Return the output and the gradients of attention to one stretch of queries, in float64."""
    (stretch,), (mask,) = masks.queries, masks(documents)
    q, k, v, gradient = (each.detach().clone() for each in given)
    leaves = [each.requires_grad_() for each in (q, k, v)]
    out = masked_attention(q[:, :, stretch.start : stretch.stop], k, v, mask)
    own = gradient[:, :, stretch.start : stretch.stop]
    return [each.detach().double() for each in (out, *torch.autograd.grad(out, leaves, own))]
