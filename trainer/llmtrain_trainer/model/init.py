"""Initial weights that depend only on the seed and on the name of a parameter.

Every layout, and every number of ranks, starts from identical weights without a seed checkpoint. A
rank draws the whole parameter and keeps its shard. The peak memory is one parameter, not one model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

STANDARD_DEVIATION = 0.02
"""Standard deviation of all matrices (GPT-2). Matrices that write to the residual stream are scaled
by the depth."""

_ADAPTER_IN, _ADAPTER_OUT = ".lora.a", ".lora.b"
_TO_RESIDUAL = ("attention.wo.weight", "ffn.down.weight", "ffn.experts.down")


def draw(name: str, shape: torch.Size, seed: int, layers: int) -> Tensor:
    """Return the initial value of one whole parameter, float32 on the CPU.

    Norm scales are ones and biases are zeros. Matrices are normal, with standard deviation 0.02, or
    0.02 / sqrt(2 layers) if they write to the residual stream (Radford et al., 2019). Of an
    adapter, B is zero and A keeps the scale of its input.
    """
    if len(shape) < 2:
        return torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
    if name.endswith(_ADAPTER_OUT):
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    deviation = shape[-1] ** -0.5 if name.endswith(_ADAPTER_IN) else STANDARD_DEVIATION
    if name.endswith(_TO_RESIDUAL):
        deviation /= math.sqrt(2 * layers)
    return torch.randn(shape, generator=generator, dtype=torch.float32) * deviation


@torch.no_grad()
def initialize(
    model: nn.Module, seed: int, layers: int, keep: Callable[[nn.Parameter, Tensor], None]
) -> None:
    """Set every parameter to its initial value. `keep` stores the local shard of a whole tensor."""
    for name, parameter in model.named_parameters():
        keep(parameter, draw(name, parameter.shape, seed, layers))
