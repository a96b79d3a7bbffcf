"""The nodes that jobs could use in a cycle: by Fabric, without quarantined ones, and by request."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping

from llmtrain_core.network import GangNetwork, NodeFacts
from llmtrain_core.network.slow_links import slow_nodes, with_slow_links
from llmtrain_core.placement import Request, networks_for
from llmtrain_core.placement.tree import Path
from llmtrain_core.queueing.capacity import (
    FreeCapacity,
    RequestClass,
    request_class,
    request_class_key,
)
from llmtrain_core.queueing.quarantine import NodeLists
from llmtrain_core.queueing.types import ClusterState, PendingJob
from llmtrain_core.topology.inventory import Snapshot


class FabricViews:
    """Fabrics and request classes of one cycle, each computed once."""

    def __init__(
        self, cluster: ClusterState, count_work: Callable[[int], None] = lambda _nodes: None
    ):
        """`count_work` gets the number of nodes that were looked at."""
        self._cluster = cluster
        self._count_work = count_work
        self._usable: dict[tuple[int, int], Snapshot] = {}
        self._classes: dict[Hashable, RequestClass] = {}
        self._facts: dict[int, Mapping[str, NodeFacts]] = {}
        self._networks: dict[Hashable, tuple[GangNetwork, ...]] = {}
        self._network_keys: dict[Hashable, int] = {}

    def fabric(self, job: PendingJob) -> Snapshot:
        """Return all nodes."""
        return self._cluster.fabrics[job.fabric]

    def quarantine(self, job: PendingJob) -> NodeLists:
        """Return the nodes that a job may not use after failures, and those that it uses last."""
        return self._cluster.quarantine.of(job.namespace)

    def last_nodes(self, job: PendingJob) -> frozenset[str]:
        """Return the nodes that a job uses last: suspects of failures, and slow ones."""
        slow = slow_nodes(self.fabric(job), self._cluster.slow_links_for(job))
        return self.quarantine(job).suspects | slow

    def only_quarantined_for_all(self, job: PendingJob) -> bool:
        """Return True if a job may not use some nodes, and no job of another namespace may.

        What only jobs of its namespace say of a node reserves no nodes from others.
        """
        excluded = self.quarantine(job).excluded.keys()
        return bool(excluded) and excluded <= self._cluster.quarantine.for_all.excluded.keys()

    def usable(self, job: PendingJob) -> Snapshot:
        """Return the fabric of a job without the nodes that are quarantined for it."""
        fabric, lists = self.fabric(job), self.quarantine(job)
        if not lists.excluded:
            return fabric
        key = id(fabric), id(lists)
        found = self._usable.get(key)
        if found is None:
            nodes = tuple(n for n in fabric.nodes if n.name not in lists.excluded)
            found = self._usable[key] = dataclasses.replace(fabric, nodes=nodes)
        return found

    def available(
        self, job: PendingJob, capacity: FreeCapacity, uplinks: Mapping[Path, float]
    ) -> Snapshot:
        """Return the fabric of a job with everything that it may not use now.

        Slow uplinks have less to give.
        """
        withheld = capacity.excluded | self.quarantine(job).excluded.keys()
        found = dataclasses.replace(
            self.fabric(job), used=capacity.used, withheld=withheld, uplinks=uplinks
        )
        return with_slow_links(found, self._cluster.slow_links_for(job))

    def requests(self, job: PendingJob) -> RequestClass:
        """Return the request class of a job on the nodes that are not quarantined."""
        return self.request_class(job.request, self.usable(job))

    def requests_on_all(self, job: PendingJob) -> RequestClass:
        """Return the request class of a job on all nodes."""
        return self.request_class(job.request, self.fabric(job))

    def on_networks(self, job: PendingJob) -> tuple[PendingJob, ...]:
        """Return a job with each network that it could use, best first; at least one.

        Quarantined nodes count: the network of a waiting job does not change with quarantines.
        """
        if job.network is None:
            return (job,)
        fabric, request = self.fabric(job), job.request
        size = request.nodes + request.spares
        key = (request_class_key(request, fabric), job.network.key, size)
        if key not in self._networks:
            self._count_work(len(fabric.nodes))
            if id(fabric) not in self._facts:
                self._facts[id(fabric)] = self._cluster.facts.of(fabric.nodes)
            found = networks_for(request, job.network, fabric, self._facts[id(fabric)])
            self._networks[key] = tuple(map(self._with_short_key, found))
        return tuple(
            dataclasses.replace(job, request=request.with_network(option))
            for option in self._networks[key]
        )

    def _with_short_key(self, network: GangNetwork) -> GangNetwork:
        """Number the keys: they are part of those of classes, which are compared very often."""
        number = self._network_keys.setdefault(network.key, len(self._network_keys))
        return dataclasses.replace(network, key=number)

    def request_class(self, request: Request, fabric: Snapshot) -> RequestClass:
        """Return the class of a request."""
        key = request_class_key(request, fabric)
        if key not in self._classes:
            self._count_work(len(fabric.nodes))
            self._classes[key] = request_class(request, fabric)
        return self._classes[key]

    def feasibility_key(self, job: PendingJob) -> Hashable:
        """Return the key of the jobs that fit on the same nodes."""
        request = job.request
        return (
            request_class_key(request, self.usable(job)),
            request.nodes,
            request.spares,
            request.spares_optional,
            request.layout,
            request.prefer,
            request.tensor_within,
        )
