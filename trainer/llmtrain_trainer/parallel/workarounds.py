"""All workarounds for defects of torch. Each has a test that fails when torch fixes the defect.

Checked against torch 2.15.0. Some defects are avoided by design and need no code here: DDP with
pipeline schedules or tensor parallelism (FSDP2 is always used), norms that are not DTensors
(sequence parallelism is always on), asynchronous checkpoints on the default group (saving has its
own group), and the 30-minute timeout of sub-groups (`Grid.limit` sets every group).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining._utils import (
    _StageBackwardMeta,
    _StageForwardMeta,
    _TensorMeta,
)

from llmtrain_trainer.runtime import json_collectives


def renew_thread_pool() -> None:
    """Make torch replace the thread pool that a fork broke, while this process has one thread.

    torch replaces it on first use in a child, without a lock. Autograd's threads all use it when
    they start. They would race for it, and one of them might find none (`Invalid thread pool!`,
    which aborts the rank, about once in a dozen starts). There is no cheap test for this race.
    """
    torch.set_num_threads(1)


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


class JsonPipelineStage(PipelineStage):
    """A stage that exchanges the shapes of its tensors as JSON.

    torch sends them as pickles, which can run any code in the stage that receives them.
    """

    def _send_meta(self, meta: Any, dst_stage: int) -> None:
        forward = isinstance(meta, _StageForwardMeta)
        tensors = meta.forward_metas if forward else meta.backward_metas
        wire = {"forward": forward, "tensors": [_to_wire(tensor) for tensor in tensors]}
        json_collectives.send(wire, self._group_rank(dst_stage), self.group)

    def _recv_meta(self, src_stage: int) -> Any:
        wire = json_collectives.receive(self._group_rank(src_stage), self.group)
        tensors = [_from_wire(tensor) for tensor in wire["tensors"]]
        if not wire["forward"]:
            return _StageBackwardMeta(tuple(tensors))
        return _StageForwardMeta(tuple(tensor for tensor in tensors if tensor is not None))

    def _group_rank(self, stage: int) -> int:
        return int(self.stage_index_to_group_rank[stage])


def _to_wire(tensor: _TensorMeta | None) -> list[Any] | None:
    if tensor is None:
        return None
    if type(tensor) is not _TensorMeta:
        raise TypeError(f"{type(tensor).__name__} between pipeline stages")
    dtype = str(tensor.dtype).removeprefix("torch.")
    return [list(tensor.shape), list(tensor.stride), dtype, tensor.requires_grad]


def _from_wire(wire: list[Any] | None) -> _TensorMeta | None:
    if wire is None:
        return None
    shape, stride, name, gradient = wire
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is not a type of tensors")
    return _TensorMeta(torch.Size(shape), tuple(stride), dtype, bool(gradient))
