"""Activation checkpointing (Chen et al., arXiv:1604.06174): memory against arithmetic.

full: a layer keeps its input and runs again in the backward pass. selective: what costs no product
runs again, the norms and the activation function of the feed-forward block; inputs and outputs of
products and of attention are kept, so no product and no collective is repeated.

Forward methods are replaced instead of wrapping modules, so names of parameters do not depend on
it. Why not torch's own: schedules that split the backward pass ask for a layer's activations once
for its input and once for each of its weights, and torch would compute them anew every time. The
model has no dropout, so there is no state of a random generator to restore.
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
    """Arrange for the slice's layers to compute activations anew, in place."""
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
    """One call of a forward method: the tensors that autograd would keep, made when asked for.

    They live until autograd lets go of the call, so they are made once however often it asks.
    """

    def __init__(self, run: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        self._run, self._count = run, 0
        tensors = [each for each in inputs if isinstance(each, Tensor)]
        self._kept = _SaveForBackward.apply(torch.empty(0, requires_grad=True), *tensors).grad_fn
        self._others = [None if isinstance(each, Tensor) else each for each in inputs]
        self._is_tensor = [isinstance(each, Tensor) for each in inputs]
        self._values: list[Tensor] = []

    def pack(self, tensor: Tensor) -> int:
        """Keep a number in place of a tensor."""
        self._count += 1
        return self._count - 1

    def unpack(self, number: int) -> Tensor:
        """Return the tensor behind a number."""
        if not self._values:
            self._fill()
        return self._values[number]

    def _fill(self) -> None:
        """Run again, up to the last tensor that is needed: what comes after is not repeated."""

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


class _Complete(Exception):  # noqa: N818 - no error: it ends a run early
    """Everything that is needed has been computed."""


def _unreachable(_: None) -> NoReturn:
    raise AssertionError("nobody goes backward through a recomputation")


class _SaveForBackward(torch.autograd.Function):
    """Keep tensors as autograd keeps them, so that hooks around a model see them."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return anchor.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> NoReturn:
        raise AssertionError("its output is used by nobody")
