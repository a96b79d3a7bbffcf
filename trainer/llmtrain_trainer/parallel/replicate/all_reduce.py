"""Adding a vector up over a group of copies: the seam for every remedy, and the plain way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch.distributed as dist
from torch import Tensor

Finish = Callable[[], None]
"""Waits until a sum that was begun is complete."""


class Sum(Protocol):
    """Adds equally long vectors up over all ranks of a group."""

    def begin(self, name: str, values: Tensor) -> Finish:
        """Start to replace `values` by the sum; nobody may touch them until it is finished.

        `name` tells one vector of a step from the others, for what is remembered about it.
        """

    def tensors(self) -> Mapping[str, Tensor]:
        """Return what this rank has to remember from one step to the next."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what a rank of the same place remembered."""


class PlainSum:
    """One all-reduce."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def begin(self, name: str, values: Tensor) -> Finish:
        """See `Sum`."""
        work = dist.all_reduce(values, group=self._group, async_op=True)
        return lambda: _wait(work)

    def tensors(self) -> Mapping[str, Tensor]:
        """See `Sum`."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Sum`."""


def _wait(work: dist.Work | None) -> None:
    if work is not None:
        work.wait()
