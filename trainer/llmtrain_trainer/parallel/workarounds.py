"""All workarounds for defects of torch. Each has a test that fails when torch fixes the defect.

Checked against torch 2.15.0. Some defects are avoided by design and need no code here: DDP with
pipeline schedules or tensor parallelism (FSDP2 is always used), norms that are not DTensors
(sequence parallelism is always on), asynchronous checkpoints on the default group (saving has its
own group), and the 30-minute timeout of sub-groups (`Grid.limit` sets every group).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import FSDPModule


def renew_thread_pool() -> None:
    """Make torch replace the thread pool that a fork broke, while this process has one thread.

    torch replaces it on first use in a child, without a lock. Autograd's threads all use it when
    they start. They would race for it, and one of them might find none (`Invalid thread pool!`,
    which aborts the rank, about once in a dozen starts). There is no cheap test for this race.
    """
    torch.set_num_threads(1)


@contextmanager
def catchable_checkpoint_errors() -> Iterator[None]:
    """Turn torch's CheckpointException into an Exception.

    It derives from BaseException, so no `except Exception` catches it and a rank would die without
    a message. It is kept as the cause, and the message has the error of each rank.
    """
    try:
        yield
    except CheckpointException as error:
        texts = (f"rank {rank}: {failure[0]!r}" for rank, failure in error.failures.items())
        raise RuntimeError("; ".join(texts)) from error


def disable_gradient_averaging(model: nn.Module, device: str) -> None:
    """Make FSDP sum gradients instead of averaging them: the loss is already normalized.

    FSDP turns a divide factor of 1 into a pre-multiplied sum, which gloo supports only for float64
    (`Cannot use ReduceOp.PREMUL_SUM with Gloo`). Forcing a plain sum avoids it.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            if device == "cpu":
                module.set_force_sum_reduction_for_comms(True)
