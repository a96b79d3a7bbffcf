"""Cache of the assessment of every job, updated when its inputs change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from llmtrain_core.api.defaults import FABRIC_NAME
from llmtrain_core.plan.hardware import Accelerator
from llmtrain_core.plan.memory.node_filter import (
    min_gpu_memory,
    nodes_by_gpu_memory,
    only_gpu,
)
from llmtrain_core.topology.inventory import Node
from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.records import FabricRecord, JobRecord, NodeRecord
from llmtrain_operator.planning.assessment import (
    NODE_STATE_TAINTS,
    Assessment,
    AssignedNodes,
    assess,
)

log = logging.getLogger(__name__)

Key = tuple[object, ...]
UNKNOWN = FabricRecord("", (), "")
"""Without a Fabric, labels do not name the rate of a link."""


class AssessmentCache:
    """One assessment per job, until its spec, its placement or the kinds of nodes change.

    It takes less than a millisecond, but about ten on a cluster of ten thousand nodes or if it
    searches for a remedy. So it runs in a thread.
    """

    def __init__(
        self,
        nodes: Callable[[], Iterable[Node]],
        node: Callable[[str], NodeRecord | None],
        fabric: Callable[[str], FabricRecord | None],
        wake: Callable[[str], None],
    ):
        """`fabric` returns a Fabric. Without one the rates of uplinks are unknown."""
        self._nodes = nodes
        self._node = node
        self._fabric = fabric
        self._wake = wake
        self._known: dict[str, tuple[Key, Assessment | None]] = {}
        self._unsettled: set[str] = set()
        self._node_generation = 0
        """Incremented when a node is added, removed, or changes its kind."""
        self._min_memory: dict[str, tuple[Job, int]] = {}
        self._nodes_up_to: tuple[int, list[tuple[int, frozenset[str]]]] = (-1, [])
        """For a node generation: by each size of GPU memory, the nodes with at most that."""
        self._gpu: tuple[int, Accelerator | None] = (-1, None)
        """For a node generation: the GPU of the nodes."""

    async def assess(self, record: JobRecord, checked: Job | list[Problem]) -> Assessment | None:
        """Return the assessment of a job.

        Return None for an invalid or finished job, and for one whose nodes no longer exist. An
        error of the planner is logged, and does not stop the job.
        """
        if isinstance(checked, list) or record.view.is_finished:
            return None
        placement = record.view.stored_placement
        topology = checked.spec.topology
        fabric = self._fabric((topology.fabric if topology else None) or FABRIC_NAME) or UNKNOWN
        placement_key = (
            (placement.get("attempt", 0), fabric.levels) if placement else (self._node_generation,)
        )
        key: Key = (record.view.generation, bool(placement), fabric.links, *placement_key)
        known = self._known.get(record.uid)
        if known is not None and known[0] == key:
            return known[1]
        generation = self._node_generation
        found = await self._compute(record, checked, fabric)
        self._known[record.uid] = (key, found)
        self._unsettled.discard(record.uid)
        if found is not None and not found.settled:
            self._unsettled.add(record.uid)
            if generation != self._node_generation:
                # Nodes changed before this job was registered as unsettled.
                self._wake(record.uid)
        return found

    async def _compute(
        self, record: JobRecord, job: Job, fabric: FabricRecord
    ) -> Assessment | None:
        placement = record.view.stored_placement
        assigned, nodes = None, tuple[Node, ...]()
        if placement is None:
            nodes = tuple(self._nodes())
        else:
            found = [known.node for name in record.view.placed_nodes if (known := self._node(name))]
            if not found:
                return None
            assigned = AssignedNodes.of(placement, found, fabric.levels)
        try:
            return await asyncio.to_thread(assess, job, nodes, assigned, fabric.links)
        except Exception:
            log.exception("job=%s cannot be planned", record.uid)
            return None

    def too_small(self, record: JobRecord, job: Job) -> frozenset[str]:
        """Return the nodes whose GPUs have too little memory for a job."""
        if record.view.allows_over_memory:
            return frozenset()
        known = self._min_memory.get(record.uid)
        if known is None or known[0] is not job:
            known = self._min_memory[record.uid] = (job, min_gpu_memory(job))
        found = frozenset[str]()
        for size, names in self._nodes_by_memory():
            if size >= known[1]:
                break
            found = names
        return found

    def only_gpu(self) -> Accelerator | None:
        """Return the GPU of all nodes, or None unless their labels name exactly one type."""
        if self._gpu[0] != self._node_generation:
            self._gpu = self._node_generation, only_gpu(self._nodes())
        return self._gpu[1]

    def _nodes_by_memory(self) -> list[tuple[int, frozenset[str]]]:
        if self._nodes_up_to[0] != self._node_generation:
            so_far, steps = frozenset[str](), []
            for size, names in sorted(nodes_by_gpu_memory(self._nodes()).items()):
                so_far |= names
                steps.append((size, so_far))
            self._nodes_up_to = (self._node_generation, steps)
        return self._nodes_up_to[1]

    def forget(self, uid: str) -> None:
        """Drop the assessment of a job that does not exist any more."""
        self._known.pop(uid, None)
        self._min_memory.pop(uid, None)
        self._unsettled.discard(uid)

    def node_changed(self, old: NodeRecord | None, new: NodeRecord | None) -> None:
        """Wake the jobs whose assessment a node of another kind may improve."""
        if old is not None and new is not None and _kind(old.node) == _kind(new.node):
            return
        self._node_generation += 1
        for uid in self._unsettled:
            self._wake(uid)


def _kind(node: Node) -> tuple[object, ...]:
    """Return the properties of a node that decide which jobs could ever use it."""
    lasting = [taint for taint in node.taints if not taint.key.startswith(NODE_STATE_TAINTS)]
    return node.labels, node.allocatable, lasting
