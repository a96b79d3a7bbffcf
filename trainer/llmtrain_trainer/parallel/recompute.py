"""Activation checkpointing (Chen et al., arXiv:1604.06174): recompute activations to save memory.

full: a layer keeps only its input and runs again in the backward pass. selective: only operations
without a matrix product run again, which are the norms and the activation function of the
feed-forward block. Inputs and outputs of matrix products and of attention are kept, so no product
and no collective is repeated.

Forward methods are replaced instead of wrapping modules, so parameter names do not change. torch's
own checkpointing is not used: schedules that split the backward pass need the activations of a
layer once for its input and once for each of its weights, and torch would recompute them every
time. The model has no dropout, so there is no random state to restore.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.model.experts import MixtureOfExperts


def apply_activation_checkpointing(
    model: Decoder, kind: Literal["none", "selective", "full"]
) -> None:
    """Recompute the activations of the chunk's layers in the backward pass, in place."""
    for block in model.blocks():
        if kind == "full":
            _recompute(block, "forward")
        elif kind == "selective":
            _recompute(block.attention_norm, "forward")
            _recompute(block.ffn_norm, "forward")
            _recompute(
                block.ffn.experts if isinstance(block.ffn, MixtureOfExperts) else block.ffn,
                "down_project",
            )
            for norm in (block.attention.q_norm, block.attention.k_norm):
                if norm is not None:
                    _recompute(norm, "forward")


def _recompute(module: nn.Module, method: str) -> None:
    run = getattr(module, method)

    def forward(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*inputs)
        region = _RecomputedCall(run, inputs)
        with saved_tensors_hooks(region.pack, region.unpack):
            return run(*inputs)

    setattr(module, method, forward)


class _RecomputedCall:
    """One call of a forward method. Its saved tensors are recomputed when they are needed.

    They live until autograd releases the call, so they are recomputed once.
    """

    def __init__(self, run: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        self._run, self._count = run, 0
        tensors = [each for each in inputs if isinstance(each, Tensor)]
        self._kept = _SaveForBackward.apply(torch.empty(0, requires_grad=True), *tensors).grad_fn
        self._others = [None if isinstance(each, Tensor) else each for each in inputs]
        self._is_tensor = [isinstance(each, Tensor) for each in inputs]
        self._values: list[Tensor] = []

    def pack(self, tensor: Tensor) -> int:
        """Save an index instead of a tensor."""
        self._count += 1
        return self._count - 1

    def unpack(self, number: int) -> Tensor:
        """Return the tensor at an index."""
        if not self._values:
            self._fill()
        return self._values[number]

    def _fill(self) -> None:
        """Run the method again, up to the last tensor that is needed."""

        def collect(tensor: Tensor) -> None:
            self._values.append(tensor.detach())
            if len(self._values) == self._count:
                raise _Complete

        tensors = iter(self._kept.saved_tensors)
        inputs = [
            next(tensors) if is_tensor else other
            for is_tensor, other in zip(self._is_tensor, self._others, strict=True)
        ]
        with (
            suppress(_Complete),
            torch.enable_grad(),
            saved_tensors_hooks(collect, _unreachable),
        ):
            self._run(*inputs)


class _Complete(Exception):  # noqa: N818 - not an error: it ends a run early
    """All needed tensors have been recomputed."""


def _unreachable(_: None) -> NoReturn:
    raise AssertionError("no backward pass goes through a recomputation")


class _SaveForBackward(torch.autograd.Function):
    """Save tensors as autograd does, so that outer saved-tensor hooks see them."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return anchor.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> NoReturn:
        raise AssertionError("its output is never used")
