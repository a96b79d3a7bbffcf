"""A two-level all-reduce: within racks first, so that a replica sends only its part to other racks.

It is a reduce-scatter among the replicas of a rack, an all-reduce of the parts between racks (of
any kind), and an all-gather in the rack. With k racks of m replicas and a vector of size S, each
replica sends 2 (k - 1) / k S / m out of its rack, over as many network interfaces as there are
replicas. A flat ring of n replicas sends 2 (n - 1) / n S through one interface (Mikami et al.,
arXiv:1811.05233, "2D-torus all-reduce").
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llmtrain_trainer.parallel.replicate.all_reduce import AllReduce, Completion


class HierarchicalAllReduce:
    """The sum over the replicas of a rank's rack, `near`, and over the racks, `far`."""

    def __init__(self, near: dist.ProcessGroup, far: AllReduce) -> None:
        self._near, self._far = near, far

    def start(self, name: str, values: Tensor) -> Completion:
        """See `AllReduce`. The transfer to other racks has been started when this returns."""
        ranks = self._near.size()
        whole = F.pad(values.flatten(), (0, -values.numel() % ranks))
        part = whole.new_empty(whole.numel() // ranks)
        dist.reduce_scatter_tensor(part, whole, group=self._near)
        far = self._far.start(name, part)

        def finish() -> None:
            far()
            dist.all_gather_into_tensor(whole, part, group=self._near)
            values.copy_(whole[: values.numel()].view_as(values))

        return finish

    def state_dict(self) -> Mapping[str, Tensor]:
        """See `AllReduce`."""
        return self._far.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """See `AllReduce`."""
        self._far.load_state_dict(state_dict)
