"""Time and count the collectives of a sampled step, independent of the backend.

A dispatch mode intercepts every collective of FSDP, tensor and pipeline parallelism with its
process group. It waits for each one, which serialises what normally overlaps with compute: a
sampled step is slower, other steps are not. Durations include waiting for the slowest rank of the
group.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group
from torch.distributed.distributed_c10d import GroupName
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmtrain_trainer.runtime.reports import UNKNOWN_GROUP, CollectiveSample

_NAMESPACES = frozenset({"c10d", "_c10d_functional", "c10d_functional"})

_OPERATIONS: tuple[tuple[str, str], ...] = (
    ("reduce_scatter", "reduce_scatter"),
    ("all_gather", "all_gather"),
    ("allgather", "all_gather"),
    ("all_reduce", "all_reduce"),
    ("allreduce", "all_reduce"),
    ("all_to_all", "all_to_all"),
    ("alltoall", "all_to_all"),
    ("broadcast", "broadcast"),
    ("send", "send"),
    ("recv", "recv"),
)
"""Prefix of an operator's name (without leading underscores) -> label; others are not counted."""

POINT_TO_POINT = frozenset({"send", "recv"})


class CollectiveMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts and times collectives while the mode is active."""

    def __init__(self, labels: Mapping[str, str], device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._labels, self._device = labels, device
        self._calls: dict[tuple[str, str], _Calls] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operator; record it if it is a collective."""
        if DTensor in types:
            return NotImplemented  # DTensor dispatches its inner operators, which come back here
        keywords = kwargs or {}
        op = _operation(func) if func.namespace in _NAMESPACES else None
        if op is None:
            return func(*args, **keywords)
        group = _group([*args, *keywords.values()])
        self._synchronize()
        start = time.perf_counter()
        result = func(*args, **keywords)
        seconds = None
        if op not in POINT_TO_POINT:
            _wait(result)
            self._synchronize()
            seconds = time.perf_counter() - start
        if group is not None:
            label = self._labels.get(group.group_name, UNKNOWN_GROUP)
            calls = self._calls.setdefault((label, op), _Calls(group.size()))
            calls.add(_payload(op, func.namespace, args, group.size()), seconds)
        return result

    def samples(self) -> tuple[CollectiveSample, ...]:
        """Return what was recorded, ordered by group and operation."""
        return tuple(
            CollectiveSample(
                group=group,
                op=op,
                payloads=tuple(calls.payloads),
                group_size=calls.group_size,
                seconds=tuple(calls.seconds),
            )
            for (group, op), calls in sorted(self._calls.items())
        )

    def _synchronize(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


class _Calls:
    """The calls of one operation on one group."""

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size
        self.payloads: list[int] = []
        self.seconds: list[float] = []

    def add(self, nbytes: int, seconds: float | None) -> None:
        self.payloads.append(nbytes)
        if seconds is not None:
            self.seconds.append(seconds)


def _operation(func: Any) -> str | None:
    name = func._schema.name.split("::")[1].lstrip("_")
    return next((label for prefix, label in _OPERATIONS if name.startswith(prefix)), None)


def _group(values: Sequence[Any]) -> dist.ProcessGroup | None:
    """Return the group among an operator's arguments: boxed (c10d) or by name (functional)."""
    for value in reversed(values):
        if isinstance(value, str):
            try:
                return _resolve_process_group(GroupName(value))
            except (RuntimeError, ValueError):
                continue  # the name of a reduction operation
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
            return dist.ProcessGroup.unbox(value)
    return None


def _wait(result: Any) -> None:
    for value in result if isinstance(result, (tuple, list)) else (result,):
        if isinstance(value, (tuple, list)):
            _wait(value)
        elif isinstance(value, Tensor):
            if value.numel() or value.dim():
                torch.ops._c10d_functional.wait_tensor(value)
        elif isinstance(value, torch.ScriptObject) and "Work" in str(value._type()):
            dist.Work.unbox(value).wait()


def _payload(op: str, namespace: str, args: Sequence[Any], size: int) -> int:
    """Return the size of the whole tensor: an all-gather's result, a reduce-scatter's input."""
    functional = namespace != "c10d"
    if op == "all_gather":
        return _nbytes(args[0]) * (size if functional else 1)
    if op == "reduce_scatter" and not functional:
        return _nbytes(args[1])
    return _nbytes(args[0])


def _nbytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (tuple, list)):
        return sum(map(_nbytes, value))
    return 0
