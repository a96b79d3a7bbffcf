"""Snapshots of the nodes by Fabric: levels, links and busy uplinks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.api.defaults import FABRIC_NAME
from llmtrain_core.queueing import RunningJob, Unschedulable
from llmtrain_core.topology.inventory import Node, Snapshot
from llmtrain_operator.cache.records import FabricRecord
from llmtrain_operator.scheduler.fabric_levels import levels_on
from llmtrain_operator.scheduler.uplink_usage_cache import UplinkUsageCache


def fabric_problem(name: str | None, fabrics: Mapping[str, FabricRecord]) -> Unschedulable | None:
    """Return why a job with this Fabric cannot be placed, or None."""
    found = fabrics.get(name or FABRIC_NAME)
    if found is None and name is not None:
        message = (
            f"spec.topology.fabric: no Fabric is named {name!r}; create it, or create the job"
            " again without the field"
        )
        return Unschedulable(Reason.FABRIC_NOT_FOUND, message)
    if found is not None and found.problem:
        message = clean_text(f"Fabric {found.name}: {found.problem}")
        return Unschedulable(Reason.INVALID_FABRIC, message)
    return None


class FabricUnavailableError(KeyError):
    """A Fabric that a job names does not exist or is invalid."""


class FabricSnapshots(dict[str | None, Snapshot]):
    """The snapshot of each Fabric by name; None is the default Fabric.

    Each is computed on first use, in the thread that decides: that takes a pass over all nodes. A
    Fabric that does not exist or is invalid is a FabricUnavailableError.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        fabrics: Mapping[str, FabricRecord],
        running: tuple[RunningJob, ...] = (),
        uplinks: UplinkUsageCache | None = None,
    ):
        super().__init__()
        self._unsorted = tuple(nodes)
        self._fabrics = fabrics
        self._running = running
        self._uplinks = uplinks or UplinkUsageCache()

    @cached_property
    def _nodes(self) -> tuple[Node, ...]:
        return tuple(sorted(self._unsorted, key=lambda node: node.name))

    def __missing__(self, name: str | None) -> Snapshot:
        if fabric_problem(name, self._fabrics) is not None:
            raise FabricUnavailableError(name)
        found = self._fabrics.get(name or FABRIC_NAME)
        snapshot = Snapshot(levels_on(found, self._nodes), self._nodes)
        if found is not None:
            snapshot = Snapshot(snapshot.levels, self._nodes, links=found.links)
        self[name] = self._uplinks.add_to(snapshot, self._running, name)
        return self[name]
