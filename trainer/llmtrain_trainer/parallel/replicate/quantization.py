"""Encode rows of values as fewer bytes, and decode them."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llmtrain_core.plan.gradient_sync import BLOCK

LARGEST = 127
"""Largest code. -128 is not used, so that codes are symmetric."""


class Codec(Protocol):
    """An encoding of floating-point values."""

    feedback: bool
    """Carry the rounding error to the next step, because rounding is coarse."""

    def encode(self, rows: Tensor) -> Tensor:
        """Return (parts, bytes) as uint8 for (parts, values). Rows are encoded independently."""

    def decode(self, message: Tensor, values: int, dtype: torch.dtype) -> Tensor:
        """Return the (parts, values) of a message."""


class Bfloat16Codec:
    """The upper half of a float32: eight bits of exponent, seven of fraction."""

    feedback = False

    def encode(self, rows: Tensor) -> Tensor:
        """See `Codec`."""
        return rows.to(torch.bfloat16).view(torch.uint8)

    def decode(self, message: Tensor, values: int, dtype: torch.dtype) -> Tensor:
        """See `Codec`."""
        return message.view(torch.bfloat16).to(dtype)


class Int8Codec:
    """Eight bits per value, and a 32-bit scale per `BLOCK` values: largest magnitude / 127.

    A row consists of its scales and then its codes. A value that is not finite makes its whole
    block non-finite, so that the receiver detects it.
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
    """Return (parts, blocks, BLOCK), the last block padded with zeros."""
    return F.pad(rows, (0, -rows.size(1) % BLOCK)).view(rows.size(0), -1, BLOCK)
