"""AdamW and its learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from llmtrain_trainer.config import OptimizerConfig
from llmtrain_trainer.parallel.dtensors import local_shard


class ShardedAdamW(torch.optim.AdamW):
    """Fused AdamW that updates local shards. Its state is sharded like the parameters.

    torch's own dispatches the update of DTensors through Python: it derives the placement of every
    argument, again for each list of shapes. The update is elementwise, so no placement matters.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient; return the loss of `closure`, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning = [each for each in group["params"] if each.grad is not None]
            states = [self._state_of(each) for each in learning]
            beta1, beta2 = group["betas"]
            adamw(
                [local_shard(each) for each in learning],
                [local_shard(each.grad) for each in learning],
                [local_shard(each["exp_avg"]) for each in states],
                [local_shard(each["exp_avg_sq"]) for each in states],
                [],
                [each["step"] for each in states],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
        return loss

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the state of a parameter, which starts with zeros."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = _zeros(parameter), _zeros(parameter)
        return state


def _zeros(parameter: nn.Parameter) -> Tensor:
    """Return zeros with the placement of a parameter."""
    zeros = torch.zeros_like(local_shard(parameter))
    if not isinstance(parameter, DTensor):
        return zeros
    return DTensor.from_local(
        zeros,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> ShardedAdamW:
    """Return fused AdamW: one call instead of ten per parameter. Norm scales have no decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.dim() > 1]
    scales = [p for p in trainable if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    return ShardedAdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step (counted from 0): linear warm-up, then cosine or constant.

    The first step has a rate above zero; the last step has the lowest rate.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    length = max(1, steps - 1 - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / length)
    share = 0.5 * (1.0 + math.cos(math.pi * done))
    return config.learning_rate * (config.min_ratio + (1.0 - config.min_ratio) * share)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
