"""The input of a scheduling cycle, read from the informers at one instant."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.devices.demand import SharedClaims, claim_amounts, shared_claims_of
from llmtrain_core.network import FactsCache
from llmtrain_core.network.slow_links import SlowLinks
from llmtrain_core.placement import Request, start_obstacles
from llmtrain_core.queueing import (
    Allocation,
    Assignment,
    ClusterState,
    PendingJob,
    RunningJob,
    Unschedulable,
)
from llmtrain_core.queueing.cycle import TERMINATION_SECONDS
from llmtrain_core.queueing.quarantine import Quarantine, quarantine
from llmtrain_core.queueing.quota import PodCharge, charge_of, shared_charge, with_claims
from llmtrain_core.topology.inventory import Node
from llmtrain_core.topology.node_limit import devices_of, is_excluded
from llmtrain_core.validation.check import Job
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.informers import Informers
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.network_status import network_status
from llmtrain_operator.cache.records import FabricRecord, JobRecord, PriorityRecord
from llmtrain_operator.config import Config
from llmtrain_operator.manifests.job_resources import child_names
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.manifests.pod import sample_pod
from llmtrain_operator.manifests.pod_network import PodNetwork
from llmtrain_operator.scheduler.devices import with_known_devices
from llmtrain_operator.scheduler.earlier_job import wait_for_earlier_job
from llmtrain_operator.scheduler.fabric_snapshots import FabricSnapshots
from llmtrain_operator.scheduler.held_nodes import HeldNodes, held_by_jobs, held_nodes
from llmtrain_operator.scheduler.jobs import (
    allocation_of,
    expired_allocation,
    holds_nodes,
    node_failures,
    pending_job,
    running_job,
)
from llmtrain_operator.scheduler.namespace_limit import limit_active_jobs
from llmtrain_operator.scheduler.spares import spare_allocations, taken_spares
from llmtrain_operator.scheduler.uplink_usage_cache import UplinkUsageCache
from llmtrain_operator.scheduler.usage import (
    placed_resources,
    request_of_pods,
    terminating_allocations,
    usage,
    used_by_others,
    with_pod_requests,
)

log = logging.getLogger(__name__)

R = TypeVar("R")


class ClusterReader:
    """Read pending jobs and the state of the cluster from the informers."""

    def __init__(
        self,
        informers: Informers,
        checked: CheckedJobs,
        too_small: Callable[[JobRecord, Job], frozenset[str]],
        config: Config,
        slow_links: Callable[[], Mapping[str, SlowLinks]] = dict,
    ):
        """Connect to the other parts.

        `too_small` returns the nodes whose GPUs have too little memory for a job. `slow_links`
        returns the slow links by Fabric.
        """
        self._slow_links = slow_links
        self._informers = informers
        self._checked = checked
        self._too_small = too_small
        self._max_active_jobs = config.max_active_jobs
        self._start_reservation = config.start_reservation
        self._max_excluded_nodes_percent = config.max_excluded_nodes_percent
        self._unknown_start_window = config.unknown_start_window
        self._system_classes = config.system_priority_classes
        self._uplinks = UplinkUsageCache()
        self._facts = FactsCache()
        self._last_placed: tuple[JobRecord, Request, Request] | None = None
        """The last job of whose nodes was asked whether its pods can start there, its request, and
        that with what its pods request."""
        self._left_out: dict[str, int] = {}
        """Version of each job that could not be read, by UID: each is logged once."""

    def job(self, uid: str) -> JobView | None:
        """Return a job by UID."""
        record = self._informers.jobs.get(uid)
        return None if record is None else record.view

    def generation(self, uid: str) -> int:
        """Return the generation of a job's spec, or -1 if the job is gone."""
        job = self.job(uid)
        return -1 if job is None else job.generation

    def pending_jobs(self) -> dict[str, PendingJob | Unschedulable]:
        """Return the jobs that wait for a placement, by UID."""
        priorities, fabrics, now = self._priorities(), self._fabrics(), time.time()
        placed: Counter[str] = Counter()

        def pending(record: JobRecord) -> tuple[str, PendingJob | Unschedulable] | None:
            placed[record.namespace] += holds_nodes(record.view)
            checked = self._checked.get(record)
            if isinstance(checked, list) or _is_rejected(record.view):
                return None
            request = partial(self._checked.request, record.uid)
            job = pending_job(
                record,
                checked,
                priorities,
                fabrics,
                now,
                request,
                system_classes=self._system_classes,
            )
            if isinstance(job, PendingJob):
                job = with_known_devices(job, checked, self._informers.devices)
            if isinstance(job, PendingJob):
                job = self._without_stuck_pods(record, job, now)
                job = self._earlier_job(record) or self._without_small_gpus(record, checked, job)
            return None if job is None else (record.uid, job)

        return limit_active_jobs(dict(self._each(pending)), placed, self._max_active_jobs)

    def _each(self, read: Callable[[JobRecord], R | None]) -> Iterator[R]:
        """Yield what a function returns for each managed job, without None.

        What is stored in one job stops no other one: a job that raises an error is left out.
        """
        for record in self._informers.managed_jobs():
            try:
                found = read(record)
            except Exception:
                if self._left_out.get(record.uid) != record.version:
                    self._left_out[record.uid] = record.version
                    log.exception("job=%s is left out of the scheduling cycle", record.uid)
                continue
            if found is not None:
                yield found

    def _earlier_job(self, record: JobRecord) -> Unschedulable | None:
        """Return why a job must wait if something of a deleted job of its name is left."""
        informers, identity = self._informers, JobIdentity.of(record.raw)
        job_name = f"{record.namespace}/{record.name}"
        names = child_names(identity, record.view.attempt)
        children = (
            found
            for kind, name in names.items()
            for found in informers.children[kind].by_index("name", f"{record.namespace}/{name}")
        )
        pods = informers.pods.by_index("job name", job_name)
        budgets = informers.budgets.by_index("name", job_name)
        return wait_for_earlier_job(record, pods, children, budgets)

    def _without_stuck_pods(self, record: JobRecord, job: PendingJob, now: float) -> PendingJob:
        """Exclude the nodes on which pods of the job do not end: it would leave them again."""
        pods = self._informers.pods.by_index("job", record.uid)
        stuck = {
            pod.node
            for pod in pods
            if pod.belongs_to(record) and pod.is_stuck(now) and not pod.ended
        }
        if not stuck:
            return job
        excluded = job.request.excluded | stuck
        return replace(job, request=replace(job.request, excluded=excluded))

    def _without_small_gpus(self, record: JobRecord, checked: Job, job: PendingJob) -> PendingJob:
        """Exclude the nodes whose GPUs are too small for a job."""
        small = self._too_small(record, checked)
        return replace(job, request=replace(job.request, too_small=small)) if small else job

    def _as_its_pods(self, record: JobRecord, job: PendingJob) -> PendingJob:
        """Return a running job with what its pods request, so that they can start elsewhere.

        Its placement has this, unless an earlier version wrote it. Pods may have been resized since
        they were created, which new ones are not.
        """
        view = record.view
        pods = self._informers.pods.by_index("job", record.uid)
        current = (p for p in pods if p.belongs_to(record) and p.attempt == view.attempt)
        pod = next(current, None)
        is_stored = bool((view.stored_placement or {}).get("resources"))
        # What the network added counts if the next nodes have the same one.
        added = PodNetwork.of_status(view.stored_network).needs
        counted = placed_resources(view) if is_stored or pod is None else dict(pod.resources)
        requests = {name: amount for name, amount in counted.items() if name not in added}
        return with_pod_requests(job, requests)

    def leaving_jobs(self) -> list[str]:
        """Return the UIDs of the running jobs that may leave nodes that are drained."""
        now = time.time()
        return [
            record.uid
            for record in self._informers.managed_jobs()
            if record.view.is_true(ConditionType.RUNNING) and record.view.may_leave(now)
        ]

    def cluster_state(self, assignments: Mapping[str, Assignment]) -> ClusterState:
        """Return the state of the cluster. `assignments` are not in the status of jobs yet."""
        informers, now = self._informers, time.time()
        jobs, pods = [*informers.jobs.values()], informers.pods_with_claims()
        running = tuple(self._running(now))
        nodes = informers.all_nodes()
        held = held_by_jobs(informers.managed_jobs(), pods, now, self._start_reservation)
        return ClusterState(
            now=now,
            fabrics=FabricSnapshots(nodes, self._fabrics(), running, self._uplinks),
            usage=tuple(usage(jobs, pods, assignments, held)),
            foreign=informers.used_by_foreign(),
            allocations=(
                *self._allocations(now, held),
                *terminating_allocations(jobs, pods, now + TERMINATION_SECONDS, held),
            ),
            spares=tuple(spare_allocations(informers.managed_jobs(), held)),
            expired=tuple(self._expired(held)),
            running=running,
            quarantine=self.quarantine(),
            slow_links=self._slow_links(),
            unknown_start_window=self._unknown_start_window,
            facts=self._facts,
        )

    def promised(
        self, namespace: str, assignments: Mapping[str, Assignment]
    ) -> Iterator[tuple[PodCharge, int]]:
        """Yield the pods of a namespace that jobs with nodes have not created yet.

        A spare node counts like one with a pod: the job may use it at any time.
        """
        now = time.time()
        for record in self._informers.managed_jobs():
            if record.namespace != namespace:
                continue
            pods = [p for p in self._informers.pods.by_index("job", record.uid) if not p.ended]
            own = [pod for pod in pods if pod.belongs_to(record)]
            held = held_nodes(record.view, own, now, self._start_reservation)
            nodes, network = [*held, *record.view.spare_nodes] if held else [], None
            if record.uid in assignments:
                nodes = [*assignments[record.uid].nodes]
                network = assignments[record.uid].network
            stored = network_status(network).to_wire() if network else record.view.stored_network
            checked = self._checked.get(record)
            missing = len(nodes) - len(own)
            if missing > 0 and isinstance(checked, Job):
                body = sample_pod(checked, record.raw, network=stored)
                shared = shared_claims_of(checked.spec)
                amounts = claim_amounts(checked.spec)
                yield with_claims(charge_of(body["spec"]), amounts, shared.count), missing
                if shared.count and not own:  # its claims are created before its first pod
                    yield PodCharge(shared_charge(shared)), 1

    def shared_holders(self, assignments: Mapping[str, Assignment]) -> dict[str, SharedClaims]:
        """Return what gangs with nodes claim once for all of their pods, by UID of the job."""
        found: dict[str, SharedClaims] = {}
        for record in self._informers.managed_jobs():
            if record.uid in assignments or holds_nodes(record.view):
                checked = self._checked.get(record)
                if isinstance(checked, Job) and (claims := shared_claims_of(checked.spec)).count:
                    found[record.uid] = claims
        return found

    def taken_spares(
        self, record: JobRecord, assignments: Mapping[str, Assignment]
    ) -> frozenset[str]:
        """Return the spare nodes of a job that other jobs have got."""
        if not record.view.spare_nodes:
            return frozenset()
        return taken_spares(record, self._informers.managed_jobs(), assignments, self._find_node)

    def start_obstacles(self, record: JobRecord, node: Node) -> tuple[str, ...]:
        """Return why a pod of a job cannot start on a node now; empty if it can.

        What the job itself uses there counts as free.
        """
        checked, name = self._checked.get(record), node.name
        if isinstance(checked, list):
            return ()
        request = self._as_placed(record, self._checked.request(record.uid, checked))
        pods = self._informers.pods_on(name)
        foreign = self._informers.used_by_foreign_on(name, request.needs)
        used = used_by_others(record, name, request.needs, pods, foreign)
        return start_obstacles(request, node, used)

    def _as_placed(self, record: JobRecord, request: Request) -> Request:
        """Return a request with what the pods of the placement request.

        It is kept for the next node, because a gang of thousands of nodes asks about each.
        """
        known = self._last_placed
        if known is None or known[0] is not record or known[1] is not request:
            added = PodNetwork.of_status(record.view.stored_network).needs
            found = request_of_pods(request.with_resources(added), placed_resources(record.view))
            known = self._last_placed = record, request, found
        return known[2]

    def _find_node(self, name: str) -> Node | None:
        found = self._informers.node(name)
        return None if found is None else found.node

    def quarantine(self) -> Quarantine:
        """Return the nodes that are quarantined now.

        Nodes whose findings have no effect, because too many have some, are used last.
        """
        failures = [*node_failures(self._informers.managed_jobs())]
        beyond = self._informers.node_health.beyond
        if not failures and not beyond:
            return Quarantine()
        nodes = [*self._informers.all_nodes()]
        return quarantine(
            failures,
            time.time(),
            {node.name: devices_of(node) for node in nodes},
            self._max_excluded_nodes_percent,
            avoided=frozenset(node.name for node in nodes if is_excluded(node)),
            suspects=beyond,
        )

    def _allocations(self, now: float, held: HeldNodes) -> Iterator[Allocation]:
        priorities = self._priorities()

        def allocation(record: JobRecord) -> Allocation | None:
            nodes = held.get(record.uid, ())
            return allocation_of(record, self._checked.get(record), priorities, now, nodes)

        return self._each(allocation)

    def _expired(self, held: HeldNodes) -> Iterator[Allocation]:
        return self._each(lambda record: expired_allocation(record, held.get(record.uid, ())))

    def _running(self, now: float) -> Iterator[RunningJob]:
        priorities = self._priorities()

        def running(record: JobRecord) -> RunningJob | None:
            request = partial(self._checked.request, record.uid)
            checked = self._checked.get(record)
            found = running_job(record, checked, priorities, now, request)
            if found is None or isinstance(checked, list):
                return None
            job = self._as_its_pods(record, self._without_small_gpus(record, checked, found.next))
            extended = self._informers.devices.classes.served
            return replace(found, next=replace(job, request=job.request.with_extended(extended)))

        return self._each(running)

    def _priorities(self) -> dict[str, PriorityRecord]:
        return {item.name: item for item in self._informers.priority_classes.values()}

    def _fabrics(self) -> dict[str, FabricRecord]:
        return {item.name: item for item in self._informers.fabrics.values()}


def _is_rejected(view: JobView) -> bool:
    """Return True if the reconcile loop does not accept the job. Then it is not queued."""
    accepted = view.condition(ConditionType.ACCEPTED)
    return accepted is not None and accepted["status"] == "False"
