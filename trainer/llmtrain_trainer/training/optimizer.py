"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from llmtrain_trainer.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW; norm scales do not decay. Fused: one call instead of ten per parameter."""
    learning = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in learning if p.dim() > 1]
    scales = [p for p in learning if p.dim() <= 1]
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
    """Return the rate of one step (counted from 0): linear warm-up, then cosine or constant.

    The first step is not wasted on a rate of zero; the last one has the lowest rate.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    length = max(1, steps - 1 - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / length)
    share = 0.5 * (1.0 + math.cos(math.pi * done))
    return config.learning_rate * (config.min_ratio + (1.0 - config.min_ratio) * share)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
