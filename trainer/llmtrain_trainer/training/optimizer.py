"""AdamW and its learning rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from llmtrain_trainer.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return fused AdamW: one call instead of ten per parameter. Norm scales have no decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.dim() > 1]
    scales = [p for p in trainable if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
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
