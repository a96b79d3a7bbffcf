"""Sums in two levels: inside racks first, so that each copy sends only its part to other racks.

Reduce-scatter among the copies of a rack, a sum of the parts between racks (by any other way), and
all-gather in the rack. Of a vector S, each copy sends 2 (k - 1) / k S / m out of a rack of m copies
in k racks, over as many network interfaces as there are copies, where a flat ring sends 2 (n - 1) /
n S through one of them (Mikami et al., arXiv:1811.05233, "2D-torus all-reduce").
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llmtrain_trainer.parallel.replicate.all_reduce import Finish, Sum


class HierarchicalSum:
    """The sum over the copies of a rack, `near`, and over the racks, `far`."""

    def __init__(self, near: dist.ProcessGroup, far: Sum) -> None:
        self._near, self._far = near, far

    def begin(self, name: str, values: Tensor) -> Finish:
        """See `Sum`; parts are on their way to other racks when this returns."""
        ranks = self._near.size()
        whole = F.pad(values.flatten(), (0, -values.numel() % ranks))
        part = whole.new_empty(whole.numel() // ranks)
        dist.reduce_scatter_tensor(part, whole, group=self._near)
        far = self._far.begin(name, part)

        def finish() -> None:
            far()
            dist.all_gather_into_tensor(whole, part, group=self._near)
            values.copy_(whole[: values.numel()].view_as(values))

        return finish

    def tensors(self) -> Mapping[str, Tensor]:
        """See `Sum`."""
        return self._far.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Sum`."""
        self._far.restore(tensors)
