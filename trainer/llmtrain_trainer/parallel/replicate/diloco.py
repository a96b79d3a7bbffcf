"""Outer updates: copies train apart and meet every few steps.

DiLoCo (Douillard et al., arXiv:2311.08105): what the copies changed since they last met, averaged,
is the gradient of an outer optimizer, SGD with Nesterov momentum, on the weights they then shared.
With a delay the average crosses the network while training goes on, and what comes late is mixed
half and half with what was learned meanwhile (Streaming DiLoCo, arXiv:2501.18512, equation 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmtrain_trainer.config import OuterConfig
from llmtrain_trainer.parallel.replicate.all_reduce import Finish, Sum

LATE_SHARE = 0.5
"""Share of a copy's own weights when a late update is mixed in."""


@dataclass(slots=True)
class _Late:
    """An outer gradient on its way."""

    gradient: Tensor
    due: int
    finish: Finish


class OuterUpdates:
    """The weights that copies last shared, and what they have learned since, on one rank's shards.

    Vectors have the length of all shards together.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], total: Sum, copies: int, config: OuterConfig
    ) -> None:
        self._shards = [_local(parameter) for parameter in parameters]
        self.copies = copies
        self._total, self._config = total, config
        self._shared = self._weights()
        self._momentum = torch.zeros_like(self._shared)
        self._late: _Late | None = None

    def meets(self, step: int) -> bool:
        """Tell whether an outer update begins after `step` steps."""
        return step % self._config.every == 0

    def after_step(self, step: int, last: bool) -> None:
        """Meet where it is time to; after the last step all copies are the same."""
        if self._late and (last or step >= self._late.due):
            self._apply(self._late, LATE_SHARE)
        if last or self.meets(step):
            late = self._begin(step)
            if last or not self._config.delay:
                self._apply(late, 0.0)

    def tensors(self) -> Mapping[str, Tensor]:
        """Return what all copies remember alike; waits for what is on its way."""
        found = {"shared": self._shared, "momentum": self._momentum}
        if self._late:
            self._late.finish()
            self._late.finish = _nothing
            due = torch.tensor(self._late.due, device=self._shared.device)
            found |= {"gradient": self._late.gradient, "due": due}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what was remembered; from the weights as they are where nothing was."""
        self._shared = tensors.get("shared", self._weights())
        self._momentum = tensors.get("momentum", torch.zeros_like(self._shared))
        self._late = None
        if "gradient" in tensors:
            self._late = _Late(tensors["gradient"], int(tensors["due"]), _nothing)

    def _begin(self, step: int) -> _Late:
        gradient = (self._shared - self._weights()) / self.copies
        finish = self._total.begin("outer", gradient)
        self._late = _Late(gradient, step + self._config.delay, finish)
        return self._late

    def _apply(self, late: _Late, own: float) -> None:
        """Take an outer step; copies keep the share `own` of their weights."""
        late.finish()
        self._late = None
        config = self._config
        self._momentum.mul_(config.momentum).add_(late.gradient)
        look_ahead = late.gradient.add(self._momentum, alpha=config.momentum)
        self._shared.sub_(look_ahead, alpha=config.learning_rate)
        start = 0
        for shard in self._shards:
            part = self._shared[start : start + shard.numel()].view_as(shard)
            shard.lerp_(part, 1.0 - own)
            start += shard.numel()

    def _weights(self) -> Tensor:
        return torch.cat([shard.flatten() for shard in self._shards])


def _local(parameter: nn.Parameter) -> Tensor:
    data = parameter.detach()
    return data.to_local() if isinstance(data, DTensor) else data


def _nothing() -> None:
    pass
