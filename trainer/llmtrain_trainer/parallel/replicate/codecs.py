"""Numbers in fewer bytes: rows of values to rows of bytes and back."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llmtrain_core.plan.gradient_sync import BLOCK

LARGEST = 127
"""Largest code; -128 is left out, so that codes are symmetric."""


class Codec(Protocol):
    """A way to write numbers."""

    feedback: bool
    """Whether rounding is coarse enough that its error has to be carried to the next step."""

    def encode(self, rows: Tensor) -> Tensor:
        """Return (parts, bytes) of unsigned bytes for (parts, values); every row alone."""

    def decode(self, message: Tensor, values: int, dtype: torch.dtype) -> Tensor:
        """Return the (parts, values) that a message says."""


class Bfloat16:
    """The upper half of a float32: eight bits of exponent, seven of fraction."""

    feedback = False

    def encode(self, rows: Tensor) -> Tensor:
        """See `Codec`."""
        return rows.to(torch.bfloat16).view(torch.uint8)

    def decode(self, message: Tensor, values: int, dtype: torch.dtype) -> Tensor:
        """See `Codec`."""
        return message.view(torch.bfloat16).to(dtype)


class Int8:
    """Eight bits a value, and a 32-bit scale for every `BLOCK` of them: largest magnitude / 127.

    A row is its scales, then its codes. What is not finite spoils its whole block, so that it is
    seen at the other end.
    """

    feedback = True

    def encode(self, rows: Tensor) -> Tensor:
        """See `Codec`."""
        blocks = _in_blocks(rows)
        scales = blocks.abs().amax(-1, keepdim=True).float() / LARGEST
        steps = (blocks / scales).nan_to_num_(0.0).round_().clamp_(-LARGEST, LARGEST)
        codes = steps.to(torch.int8).flatten(1)[:, : rows.size(1)]
        return torch.cat((scales.flatten(1).view(torch.uint8), codes.view(torch.uint8)), 1)

    def decode(self, message: Tensor, values: int, dtype: torch.dtype) -> Tensor:
        """See `Codec`."""
        split = 4 * -(-values // BLOCK)
        scales = message[:, :split].contiguous().view(torch.float32).to(dtype)
        blocks = _in_blocks(message[:, split:].view(torch.int8).to(dtype))
        return (blocks * scales.unsqueeze(-1)).flatten(1)[:, :values]


def _in_blocks(rows: Tensor) -> Tensor:
    """Return (parts, blocks, BLOCK), the last block filled up with zeros."""
    return F.pad(rows, (0, -rows.size(1) % BLOCK)).view(rows.size(0), -1, BLOCK)
