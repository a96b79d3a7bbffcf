"""Low-rank adapters beside frozen products (LoRA: Hu et al., arXiv:2106.09685).

A product W x of a layer becomes W x + alpha / rank * B (A x), where only A (rank, in) and B (out,
rank) learn. B starts at zero, so the model starts as it was. No parallelism here: where products
are split over ranks, `llmtrain_trainer.parallel.adapters` splits the adapters alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain_trainer.model.decoder import Decoder

ATTRIBUTE = "lora"
"""Name of an adapter in its product's module, and so in the names of its parameters."""

TARGETS: Mapping[str, tuple[str, str]] = {
    "q_proj": ("attention", "wq"),
    "k_proj": ("attention", "wk"),
    "v_proj": ("attention", "wv"),
    "o_proj": ("attention", "wo"),
    "gate_proj": ("ffn", "gate"),
    "up_proj": ("ffn", "up"),
    "down_proj": ("ffn", "down"),
}
"""Usual name of a product to its place in a layer."""


class Adapter(nn.Module):
    """scale * B (A x)."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.empty(outputs, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Map (.., in) to (.., out)."""
        return self.product(x, self.a, self.b)

    def product(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The same with the matrices given: the whole ones, or a part of each."""
        return F.linear(F.linear(x, a), b) * self.scale


def targeted(model: Decoder, targets: Iterable[str]) -> Iterator[nn.Linear]:
    """Yield the products of a slice's layers that the targets name."""
    for block in model.blocks():
        for target in targets:
            region, name = TARGETS[target]
            module = getattr(getattr(block, region), name)
            if isinstance(module, nn.Linear):
                yield module


def put_beside(product: nn.Linear, adapter: Adapter, method: str = "forward") -> None:
    """Add an adapter's output to what a product's method returns; names of the product stay."""
    setattr(product, ATTRIBUTE, adapter)
    run: Callable[[Tensor], Tensor] = getattr(product, method)

    def both(x: Tensor) -> Tensor:
        # the adapter first: recomputing ends before the last product, which is the large one
        out: Tensor = adapter(x) + run(x)
        return out

    setattr(product, method, both)


def adapted(model: nn.Module) -> Iterator[tuple[nn.Linear, Adapter]]:
    """Yield every product that has an adapter."""
    for module in model.modules():
        adapter = getattr(module, ATTRIBUTE, None)
        if isinstance(module, nn.Linear) and isinstance(adapter, Adapter):
            yield module, adapter


def is_adapter(name: str) -> bool:
    """Tell whether a parameter's name is one of an adapter's."""
    return f".{ATTRIBUTE}." in name
