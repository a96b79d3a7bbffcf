"""All-reduce over the replicas: the interface and the plain implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch.distributed as dist
from torch import Tensor

Completion = Callable[[], None]
"""Waits until a started all-reduce is complete."""


class AllReduce(Protocol):
    """Sums vectors of equal length over all ranks of a group."""

    def start(self, name: str, values: Tensor) -> Completion:
        """Start to replace `values` by the sum. Do not use `values` before completion.

        `name` identifies the vector within a step. State is kept per name.
        """

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return this rank's state, which the next step needs."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Continue with the state of a rank at the same coordinates."""


class PlainAllReduce:
    """One all-reduce."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def start(self, name: str, values: Tensor) -> Completion:
        """See `AllReduce`."""
        work = dist.all_reduce(values, group=self._group, async_op=True)
        return lambda: _wait(work)

    def state_dict(self) -> Mapping[str, Tensor]:
        """See `AllReduce`."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """See `AllReduce`."""


def _wait(work: dist.Work | None) -> None:
    if work is not None:
        work.wait()
