"""Collect the transfer times of all groups on rank 0, once for a block of sampled steps.

The ranks of a group agree on the time of a collective without waiting (`straggler`), and on that of
a network probe. So the first rank of each group keeps both. After `BLOCK_SAMPLES` sampled steps, or
probes, one all-reduce of a short vector brings the medians to rank 0: each rank fills in those of
its own groups, and the rest is zero. The all-reduce uses connections that exist already.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
import torch.distributed as dist

from llmtrain_core.network.links import GroupKey, reported_groups
from llmtrain_core.network.transfer_times import BLOCK_SAMPLES, SampleBlock, block_of
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.metrics.network_probe import probe_groups
from llmtrain_trainer.parallel.mesh import LABELS, Grid
from llmtrain_trainer.runtime.reports import (
    CollectiveSample,
    GroupTransfer,
    ProbeReport,
    ProbeSample,
    Send,
    Transfer,
    TransferReport,
)

_PAYLOAD_VARIES = frozenset({"all_to_all"})
"""The payload of an all-to-all depends on what the experts get."""


class TransferTimes:
    """The samples of this rank's groups since the last block.

    All methods are collective over all ranks.
    """

    def __init__(self, grid: Grid, run: RunConfig, device: torch.device, send: Send) -> None:
        """Choose the groups; none if no group of the job crosses the network."""
        self._grid, self._device, self._send = grid, device, send
        self._groups: list[GroupKey] = []
        self._samples: dict[Transfer, list[dict[str, float]]] = {"collectives": [], "probe": []}
        """Seconds by label, for each sampled step or probe."""
        layout, per_node, crosses = grid.layout, run.ranks_per_node, False
        for label in sorted({LABELS[name] for name in grid.groups}):
            ranks = layout.group(label, run.sync.replicas_per_rack)
            for members in reported_groups(ranks, layout.world_size, per_node):
                self._groups.append((label, members[0]))
                crosses |= members[0] // per_node != members[-1] // per_node
        if not crosses:
            self._groups = []

    def add_step(self, collectives: Iterable[CollectiveSample]) -> None:
        """Add a sampled step. If a block is complete, rank 0 sends it."""
        seconds: dict[str, float] = {}
        for sample in collectives:
            tensors = sample.without_scalars()
            if tensors.waits and sample.op not in _PAYLOAD_VARIES:
                transfer = sum(tensors.seconds) - sum(tensors.waits)
                seconds[sample.group] = seconds.get(sample.group, 0.0) + transfer
        self._add("collectives", seconds)

    def add_probe(self, samples: Iterable[ProbeSample]) -> None:
        """Add a network probe, whose largest payload counts. See `add_step`."""
        by_size = sorted(samples, key=lambda sample: sample.nbytes)
        self._add("probe", {sample.group: sample.seconds for sample in by_size})

    def probe(self, step: int) -> None:
        """Send a network probe after a step, and add it."""
        found = ProbeReport(step, probe_groups(self._grid, self._device))
        self._send(found)
        self.add_probe(found.samples)

    def _add(self, kind: Transfer, seconds: dict[str, float]) -> None:
        if not self._groups:
            return
        samples = self._samples[kind]
        samples.append(seconds)
        if len(samples) < BLOCK_SAMPLES:
            return
        self._samples[kind] = []
        own = [self._own_block(key, samples) for key in self._groups]
        values = [(each.seconds, each.error) if each else (0.0, 0.0) for each in own]
        vector = torch.tensor([*chain(*values)], dtype=torch.float64, device=self._device)
        dist.all_reduce(vector)
        if dist.get_rank() != 0:
            return
        blocks = zip(self._groups, vector.view(-1, 2).tolist(), strict=True)
        found = (GroupTransfer(key, SampleBlock(*block)) for key, block in blocks if block[0] > 0)
        self._send(TransferReport(kind, tuple(found)))

    def _own_block(self, key: GroupKey, samples: list[dict[str, float]]) -> SampleBlock | None:
        """Return the summary of a group whose first rank this is, if all samples have it."""
        label, first = key
        seconds = [sample[label] for sample in samples if sample.get(label, 0.0) > 0]
        if first != dist.get_rank() or len(seconds) < len(samples):
            return None
        return block_of(seconds)
