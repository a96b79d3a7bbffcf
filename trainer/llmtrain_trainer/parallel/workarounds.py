"""Every way around a defect of torch, in one place; each has a test that fails once it is mended.

Checked against torch 2.15.0. Some defects are avoided by design and need no code here: DDP under
pipeline schedules or tensor parallelism (FSDP2 is always used), norms that are not DTensors
(sequence parallelism is always on), asynchronous checkpoints on the default group (saving has a
group of its own), and the 30 minutes of sub-groups (`Grid.limit` sets every group).
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

    torch replaces it on the first use in a child, without a lock: autograd's threads, which all use
    it when they start, otherwise race for it and one may find none (`Invalid thread pool!`, an
    abort of the whole rank, once in some dozen starts). A race has no cheap test.
    """
    torch.set_num_threads(1)


@contextmanager
def catchable_checkpoint_errors() -> Iterator[None]:
    """Turn torch's CheckpointException into an Exception.

    It derives from BaseException, so every `except Exception` lets it through and a rank would die
    without a word. It is kept as the cause, with what each rank raised.
    """
    try:
        yield
    except CheckpointException as error:
        texts = (f"rank {rank}: {failure[0]!r}" for rank, failure in error.failures.items())
        raise RuntimeError("; ".join(texts)) from error


def disable_gradient_averaging(model: nn.Module, device: str) -> None:
    """Make FSDP add gradients up instead of averaging them: the loss is already normalised.

    A divide factor of 1 is turned into a pre-multiplied sum, which gloo lacks (`Cannot use
    ReduceOp.PREMUL_SUM with Gloo`) for every type but float64. Forcing a plain sum avoids it.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            if device == "cpu":
                module.set_force_sum_reduction_for_comms(True)
