"""Low-rank adapters for frozen linear layers (LoRA: Hu et al., arXiv:2106.09685).

A linear layer W x becomes W x + alpha / rank * B (A x). Only A (rank, in) and B (out, rank) are
trained. B starts at zero, so the initial output does not change. There is no parallelism here:
`llmtrain_trainer.parallel.adapters` shards adapters like their linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain_trainer.model.decoder import Decoder

ATTRIBUTE = "lora"
"""Attribute of an adapter in its linear layer. It is part of the adapter's parameter names."""

TARGETS: Mapping[str, tuple[str, str]] = {
    "q_proj": ("attention", "wq"),
    "k_proj": ("attention", "wk"),
    "v_proj": ("attention", "wv"),
    "o_proj": ("attention", "wo"),
    "gate_proj": ("ffn", "gate"),
    "up_proj": ("ffn", "up"),
    "down_proj": ("ffn", "down"),
}
"""Common name of a linear layer -> its module and attribute in a block."""


class Adapter(nn.Module):
    """scale * B (A x)."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.empty(outputs, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Map (.., in) to (.., out)."""
        return self.project(x, self.a, self.b)

    def project(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Apply the given matrices: the whole ones, or a shard of each."""
        return F.linear(F.linear(x, a), b) * self.scale


def target_layers(model: Decoder, targets: Iterable[str]) -> Iterator[nn.Linear]:
    """Yield the linear layers of a stage that the targets select."""
    for block in model.blocks():
        for target in targets:
            region, name = TARGETS[target]
            module = getattr(getattr(block, region), name)
            if isinstance(module, nn.Linear):
                yield module


def attach_adapter(linear: nn.Linear, adapter: Adapter, method: str = "forward") -> None:
    """Add the adapter's output to the output of a method. Parameter names of the layer stay."""
    setattr(linear, ATTRIBUTE, adapter)
    run: Callable[[Tensor], Tensor] = getattr(linear, method)

    def both(x: Tensor) -> Tensor:
        # the adapter first: recomputation ends before the last matrix product, which is the large
        # one
        out: Tensor = adapter(x) + run(x)
        return out

    setattr(linear, method, both)


def layers_with_adapters(model: nn.Module) -> Iterator[tuple[nn.Linear, Adapter]]:
    """Yield every linear layer that has an adapter."""
    for module in model.modules():
        adapter = getattr(module, ATTRIBUTE, None)
        if isinstance(module, nn.Linear) and isinstance(adapter, Adapter):
            yield module, adapter


def is_adapter(name: str) -> bool:
    """Return True if a parameter belongs to an adapter, by its name."""
    return f".{ATTRIBUTE}." in name
