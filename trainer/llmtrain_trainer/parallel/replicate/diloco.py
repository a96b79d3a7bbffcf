"""DiLoCo: replicas train independently and synchronize every few steps.

DiLoCo (Douillard et al., arXiv:2311.08105): the average change of the replicas since the last
synchronization is the gradient of an outer optimizer, SGD with Nesterov momentum, on the weights
they had then. With a delay, the average is communicated while training goes on. A delayed update is
mixed half and half with the weights learned in the meantime (Streaming DiLoCo, arXiv:2501.18512,
equation 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmtrain_trainer.config import OuterOptimizerConfig
from llmtrain_trainer.parallel.dtensors import local_shard
from llmtrain_trainer.parallel.replicate.all_reduce import AllReduce, Completion

OWN_SHARE = 0.5
"""Weight of a replica's own weights when a delayed update is mixed in."""


@dataclass(slots=True)
class _PendingUpdate:
    """An outer gradient whose all-reduce has been started."""

    gradient: Tensor
    due: int
    finish: Completion


class OuterOptimizer:
    """The last synchronized weights of this rank's shards, and the outer optimizer for them.

    Vectors have the length of all shards together.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        all_reduce: AllReduce,
        replicas: int,
        config: OuterOptimizerConfig,
    ) -> None:
        self._shards = [local_shard(parameter.detach()) for parameter in parameters]
        self.replicas = replicas
        self._all_reduce, self._config = all_reduce, config
        self._shared = self._weights()
        self._momentum = torch.zeros_like(self._shared)
        self._pending: _PendingUpdate | None = None

    def syncs_at(self, step: int) -> bool:
        """Return True if an outer update starts after `step` steps."""
        return step % self._config.inner_steps == 0

    def after_step(self, step: int, last: bool) -> None:
        """Synchronize if it is time to. After the last step all replicas are equal."""
        if self._pending and (last or step >= self._pending.due):
            self._apply(self._pending, OWN_SHARE)
        if last or self.syncs_at(step):
            pending = self._begin(step)
            if last or not self._config.delay_steps:
                self._apply(pending, 0.0)

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the state, which is equal on all replicas. Waits for a pending update."""
        found = {"shared": self._shared, "momentum": self._momentum}
        if self._pending:
            self._pending.finish()
            self._pending.finish = _do_nothing
            due = torch.tensor(self._pending.due, device=self._shared.device)
            found |= {"gradient": self._pending.gradient, "due": due}
        return found

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the state. Without any, start from the current weights."""
        self._shared = state_dict.get("shared", self._weights())
        self._momentum = state_dict.get("momentum", torch.zeros_like(self._shared))
        self._pending = None
        if "gradient" in state_dict:
            self._pending = _PendingUpdate(
                state_dict["gradient"], int(state_dict["due"]), _do_nothing
            )

    def _begin(self, step: int) -> _PendingUpdate:
        gradient = (self._shared - self._weights()) / self.replicas
        finish = self._all_reduce.start("outer", gradient)
        self._pending = _PendingUpdate(gradient, step + self._config.delay_steps, finish)
        return self._pending

    def _apply(self, pending: _PendingUpdate, own: float) -> None:
        """Take an outer step. Replicas keep the share `own` of their weights."""
        pending.finish()
        self._pending = None
        config = self._config
        self._momentum.mul_(config.momentum).add_(pending.gradient)
        look_ahead = pending.gradient.add(self._momentum, alpha=config.momentum)
        self._shared.sub_(look_ahead, alpha=config.learning_rate)
        start = 0
        for shard in self._shards:
            part = self._shared[start : start + shard.numel()].view_as(shard)
            shard.lerp_(part, 1.0 - own)
            start += shard.numel()

    def _weights(self) -> Tensor:
        return torch.cat([shard.flatten() for shard in self._shards])


def _do_nothing() -> None:
    pass
