"""Usage of uplinks by running jobs, cached per attempt and fabric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from llmtrain_core.placement import Request
from llmtrain_core.placement.tree import Path
from llmtrain_core.queueing import RunningJob
from llmtrain_core.queueing.uplink_usage import add_usage, oversubscribed, uplink_usage
from llmtrain_core.topology.inventory import Snapshot

Shares = Mapping[Path, float]
FabricKey = tuple[object, ...]
"""The parts of a fabric that the usage of its uplinks depends on."""
_Entry = tuple[Request, tuple[str, ...], float | None]


class UplinkUsageCache:
    """The shares of uplinks that running jobs use. Computed once per attempt and fabric."""

    def __init__(self) -> None:
        self._known: dict[str | None, tuple[FabricKey, dict[str, tuple[_Entry, Shares]]]] = {}

    def add_to(
        self, fabric: Snapshot, running: Iterable[RunningJob], name: str | None = None
    ) -> Snapshot:
        """Return the fabric with the shares of its uplinks that are in use."""
        if not oversubscribed(fabric):
            return fabric
        # Every label counts: a node that joins a domain increases the capacity of its uplink.
        nodes = tuple((node.name, node.labels) for node in fabric.nodes)
        key: FabricKey = (fabric.levels, fabric.links, nodes)
        before, entries = self._known.get(name, ((), {}))
        old = entries if before == key else {}
        known: dict[str, tuple[_Entry, Shares]] = {}
        total: dict[Path, float] = {}
        for job in running:
            uid, request = job.next.uid, job.next.request
            entry = (request, job.nodes, job.step_seconds)
            found = old.get(uid)
            if found is None or found[0] != entry:
                shares = uplink_usage(request, job.nodes, fabric, job.step_seconds)
                found = entry, shares
            known[uid] = found
            add_usage(total, found[1])
        self._known[name] = key, known
        return replace(fabric, uplinks=total)
