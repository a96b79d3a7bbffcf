"""One scheduling decision about all pending jobs, and the search for better placements. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from llmtrain_core.api.conditions import clean_text
from llmtrain_core.network.slow_links import with_slow_links
from llmtrain_core.placement import Placement, Request, eligible
from llmtrain_core.queueing import (
    Assignment,
    ClusterState,
    PendingJob,
    RunningJob,
    Unschedulable,
)
from llmtrain_core.queueing.capacity import request_class_key
from llmtrain_core.queueing.cycle import decide_within
from llmtrain_core.queueing.fabric_views import FabricViews
from llmtrain_core.queueing.messages import displaced_message, preempted_message
from llmtrain_core.queueing.relocation import find_placement_without, find_relocation
from llmtrain_core.queueing.round import NEW_ROUND, Round
from llmtrain_core.topology.findings import LabelFinding, findings, relevant_to_job, sentences
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_operator.cache.placement_status import placement_status, summary
from llmtrain_operator.scheduler.decisions import Preemption, RelocationHint
from llmtrain_operator.scheduler.fabric_snapshots import FabricUnavailableError
from llmtrain_operator.scheduler.uplink_usage_cache import UplinkUsageCache

MAX_FINDINGS = 4
"""Findings about labels in a message."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """The result of one cycle, by UID."""

    pending: Mapping[str, Assignment | Unschedulable]
    """One for each pending job, without those that keep their answer or have none yet."""
    preemptions: Mapping[str, Preemption]
    """Running jobs that must stop."""
    round: Round = NEW_ROUND
    """The input of the next cycle."""
    complete: bool = True
    """Whether every pending job has an answer."""


def decide(
    jobs: Mapping[str, PendingJob | Unschedulable],
    cluster: ClusterState,
    earlier: Round = NEW_ROUND,
) -> Decisions:
    """Decide about pending jobs, with bounded work. Deterministic."""
    decisions: dict[str, Assignment | Unschedulable] = {
        uid: job for uid, job in jobs.items() if isinstance(job, Unschedulable)
    }
    waiting = [job for job in jobs.values() if isinstance(job, PendingJob)]
    held = {allocation.uid: allocation for allocation in cluster.allocations}
    labels = _LabelFindings(cluster.fabrics)
    preemptions: dict[str, Preemption] = {}
    found = decide_within(waiting, cluster, earlier)
    for job in waiting:
        decision = found.decisions.get(job.uid)
        if decision is None:
            continue
        if isinstance(decision, Assignment):
            note = labels.note(job, decision.placement)
            decisions[job.uid] = replace(decision, note=note)
            continue
        message = decision.message
        if not decision.behind and not decision.victims:
            message += labels.note(job)
        decisions[job.uid] = Unschedulable(decision.reason, clean_text(message), decision.starts_at)
        for uid in decision.victims:
            victim = held[uid]
            admitted = victim.unadmitted_since is None
            text = clean_text(preempted_message(victim.namespace, job.key, admitted=admitted))
            preemptions[uid] = Preemption(victim.attempt, job.uid, text)
    assigned = (
        (job, decision)
        for job in waiting
        if isinstance(decision := found.decisions.get(job.uid), Assignment)
    )
    preemptions |= displaced(assigned, cluster)
    return Decisions(decisions, preemptions, found.round, found.complete)


def displaced(
    assigned: Iterable[tuple[PendingJob, Assignment]], cluster: ClusterState
) -> dict[str, Preemption]:
    """Return the jobs whose expired placement has a node that another job gets now, by UID."""
    taken = {node: job for job, assignment in assigned for node in assignment.nodes}
    found: dict[str, Preemption] = {}
    for expired in cluster.expired:
        job = next((taken[node] for node in expired.nodes if node in taken), None)
        if job is not None and job.uid != expired.uid:
            text = clean_text(displaced_message(expired.namespace, job.key))
            found[expired.uid] = Preemption(expired.attempt, job.uid, text, expired=True)
    return found


class _LabelFindings:
    """Findings about topology labels, computed once per Fabric."""

    def __init__(self, fabrics: Mapping[str | None, Snapshot]):
        self._fabrics = fabrics
        self._known: dict[str | None, Sequence[LabelFinding]] = {}
        self._eligible: dict[Hashable, frozenset[str]] = {}

    def note(self, job: PendingJob, placement: Placement | None = None) -> str:
        """Return the findings on the nodes that a job could use, or is placed on."""
        fabric = self._fabrics[job.fabric]
        if job.fabric not in self._known:
            self._known[job.fabric] = findings(fabric)
        known = self._known[job.fabric]
        if not known:
            return ""
        kind = request_class_key(job.request, fabric)
        if kind not in self._eligible:
            self._eligible[kind] = eligible(job.request, fabric)
        placed = could = self._eligible[kind]
        if placement is not None:
            placed = frozenset(node.name for node in (*placement.nodes, *placement.spares))
        bearing = relevant_to_job(known, could, placed)
        return "".join(f"; {text}" for text in sentences(bearing, MAX_FINDINGS))


def find_better_placement(
    job: RunningJob, cluster: ClusterState
) -> tuple[RelocationHint, Assignment | None]:
    """Return a better placement for a running job. The nodes that it holds count as free.

    It goes to no node that placements use last.
    """
    pending, views = job.next, FabricViews(cluster)
    nowhere = RelocationHint(pending.attempt - 1, 1.0, "")
    view = _fabric_without(job, cluster)
    if view is None:
        return nowhere, None
    # The cost of a placement does not tell networks apart, so the job stays on its own.
    same = (each for each in views.on_networks(pending) if _is_on(job.nodes, each.request))
    pending = next(same, pending)
    if pending.network is not None and pending.request.network is None:
        return nowhere, None
    last = (views.last_nodes(pending) | pending.avoided_nodes).difference(job.nodes)
    view = replace(view, withheld=view.withheld | last)
    found = find_relocation(pending.request, job.nodes, view)
    if found is None:
        return nowhere, None
    assignment = _relocated(pending, found.placement, cluster)
    text = summary(placement_status(assignment))
    return RelocationHint(pending.attempt - 1, found.gain, text), assignment


def find_place_elsewhere(job: RunningJob, cluster: ClusterState) -> Assignment | None:
    """Return a placement of a running job without the nodes that it must leave, or None.

    The spare nodes of other jobs come late: they would go on with fewer of them. The nodes of a
    placement that has expired come last: its job would be displaced.
    """
    view = _fabric_without(job, cluster)
    if view is None:
        return None
    lists, here = cluster.quarantine.of(job.next.namespace), frozenset(job.nodes)
    expired = frozenset(node for held in cluster.expired for node in held.nodes)
    out = frozenset(lists.excluded) | expired
    own = out | (job.next.avoided_nodes - here)
    views = FabricViews(cluster)
    suspects = own | (views.last_nodes(job.next) - here)
    for pending in views.on_networks(job.next):
        steps = (suspects | view.withheld, suspects, own, out, out - expired)
        for withheld in dict.fromkeys(steps):
            available = replace(view, withheld=withheld)
            found = find_placement_without(pending.request, job.leaving, available)
            if found is not None:
                return _relocated(pending, found, cluster)
    return None


def _is_on(nodes: Sequence[str], request: Request) -> bool:
    """Return True if nodes of a gang have the network of a request, as far as it is known.

    It is not known of nodes that could not hold a block now, such as cordoned or avoided ones.
    """
    network = request.network
    return network is None or (
        not network.nodes.isdisjoint(nodes) and network.excluded.keys().isdisjoint(nodes)
    )


def _fabric_without(job: RunningJob, cluster: ClusterState) -> Snapshot | None:
    """Return the fabric of a job as if it had released its nodes; None if it has no fabric."""
    pending = job.next
    try:
        fabric = replace(cluster.fabrics[pending.fabric], uplinks={})
    except FabricUnavailableError:
        return None
    others = tuple(item for item in cluster.usage if item.owner != pending.uid)
    spares = frozenset(n for item in cluster.spares if item.uid != pending.uid for n in item.nodes)
    rest = [other for other in cluster.running if other is not job]
    return replace(
        with_slow_links(UplinkUsageCache().add_to(fabric, rest), cluster.slow_links_for(pending)),
        used=replace(cluster, usage=others).used,
        withheld=frozenset(cluster.quarantine.of(pending.namespace).excluded) | spares,
    )


def _relocated(pending: PendingJob, placement: Placement, cluster: ClusterState) -> Assignment:
    return Assignment(
        pending.attempt,
        placement,
        pending.resources,
        pending.request.gpus_per_node,
        pending.priority,
        note=_LabelFindings(cluster.fabrics).note(pending, placement),
        network=pending.request.chosen_network,
    )
