"""Keeps the assessment of every job, and makes it anew when what it rests on changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from llmtrain_core.plan.memory.gpu_memory import min_gpu_memory, nodes_by_gpu_memory
from llmtrain_core.topology.inventory import Node
from llmtrain_core.topology.levels import Levels
from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.records import JobRecord, NodeRecord
from llmtrain_operator.planning.assess import PASSING_TAINTS, Assessment, Seat, assess

log = logging.getLogger(__name__)

Key = tuple[object, ...]


class AssessmentCache:
    """One assessment a job, until its spec, its seat or the cluster's kinds of nodes change.

    It takes under a millisecond, and up to some ten on a cluster of ten thousand nodes or where a
    remedy is looked for: so it is made in a thread.
    """

    def __init__(
        self,
        nodes: Callable[[], Iterable[Node]],
        node: Callable[[str], NodeRecord | None],
        levels: Callable[[str | None], Levels],
        wake: Callable[[str], None],
    ):
        """`levels` are those of a Fabric by name; without one, nothing is known of its uplinks."""
        self._nodes = nodes
        self._node = node
        self._levels = levels
        self._wake = wake
        self._known: dict[str, tuple[Key, Assessment | None]] = {}
        self._unsettled: set[str] = set()
        self._era = 0
        """Grows whenever a node comes, goes or becomes another kind."""
        self._needs: dict[str, tuple[Job, int]] = {}
        self._smaller: tuple[int, list[tuple[int, frozenset[str]]]] = (-1, [])
        """Of an era: by every size of GPU memory, the nodes with that or less."""

    async def assess(self, record: JobRecord, checked: Job | list[Problem]) -> Assessment | None:
        """Return the assessment of a job; None where there is nothing to say about it now.

        That is so for an invalid or finished job, and for one whose nodes are all gone. A defect
        of the plan is logged and stops no job.
        """
        if isinstance(checked, list) or record.view.is_finished:
            return None
        placement = record.view.stored_placement
        topology = checked.spec.topology
        levels = self._levels(topology.fabric if topology else None) if placement else ()
        seat_key = (placement.get("attempt", 0), levels) if placement else (self._era,)
        key: Key = (record.view.generation, bool(placement), *seat_key)
        known = self._known.get(record.uid)
        if known is not None and known[0] == key:
            return known[1]
        era = self._era
        found = await self._make(record, checked, levels)
        self._known[record.uid] = (key, found)
        self._unsettled.discard(record.uid)
        if found is not None and not found.settled:
            self._unsettled.add(record.uid)
            if era != self._era:
                # nodes changed meanwhile, when nobody knew yet that this job should be told
                self._wake(record.uid)
        return found

    async def _make(self, record: JobRecord, job: Job, levels: Levels) -> Assessment | None:
        placement = record.view.stored_placement
        seat, nodes = None, tuple[Node, ...]()
        if placement is None:
            nodes = tuple(self._nodes())
        else:
            found = [known.node for name in record.view.placed_nodes if (known := self._node(name))]
            if not found:
                return None
            seat = Seat.of(placement, found, levels)
        try:
            return await asyncio.to_thread(assess, job, nodes, seat)
        except Exception:
            log.exception("job=%s cannot be planned", record.uid)
            return None

    def too_small(self, record: JobRecord, job: Job) -> frozenset[str]:
        """Return the nodes on whose GPUs a job provably cannot run, whatever else it could use."""
        if record.view.allows_over_memory:
            return frozenset()
        known = self._needs.get(record.uid)
        if known is None or known[0] is not job:
            known = self._needs[record.uid] = (job, min_gpu_memory(job))
        found = frozenset[str]()
        for size, names in self._by_size():
            if size >= known[1]:
                break
            found = names
        return found

    def _by_size(self) -> list[tuple[int, frozenset[str]]]:
        if self._smaller[0] != self._era:
            so_far, steps = frozenset[str](), []
            for size, names in sorted(nodes_by_gpu_memory(self._nodes()).items()):
                so_far |= names
                steps.append((size, so_far))
            self._smaller = (self._era, steps)
        return self._smaller[1]

    def forget(self, uid: str) -> None:
        """Drop what is known of a job that is gone."""
        self._known.pop(uid, None)
        self._needs.pop(uid, None)
        self._unsettled.discard(uid)

    def node_changed(self, old: NodeRecord | None, new: NodeRecord | None) -> None:
        """Look again at jobs for which another kind of node may be good news."""
        if old is not None and new is not None and _kind(old.node) == _kind(new.node):
            return
        self._era += 1
        for uid in self._unsettled:
            self._wake(uid)


def _kind(node: Node) -> tuple[object, ...]:
    """Return what decides which jobs could ever use a node."""
    lasting = [taint for taint in node.taints if not taint.key.startswith(PASSING_TAINTS)]
    return node.labels, node.allocatable, lasting
