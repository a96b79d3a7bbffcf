"""Jobs as the scheduler sees them: pending, running, and the nodes and resources they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_core.api.failure_info import FailureEvidence
from llmtrain_core.devices.demand import shared_claims_of
from llmtrain_core.network import NetworkRequest
from llmtrain_core.placement import Request
from llmtrain_core.queueing import Allocation, Assignment, PendingJob, RunningJob, Unschedulable
from llmtrain_core.queueing.quarantine import NodeFailure
from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.job import JobView, Raw, parse_time
from llmtrain_operator.cache.records import FabricRecord, JobRecord, PriorityRecord
from llmtrain_operator.manifests.gang_scheduling import KUEUE_QUEUE_NAME
from llmtrain_operator.planning import durations
from llmtrain_operator.planning.confirmed_progress import confirmed
from llmtrain_operator.scheduler.fabric_snapshots import fabric_problem
from llmtrain_operator.scheduler.usage import placed_resources

_AVOIDED_AFTER = frozenset({Reason.STARTUP_TIMEOUT, Reason.UNSCHEDULABLE})
"""Failures after which the same job tries other nodes first, whatever they are evidence of."""
_OLDER_EVIDENCE = {
    Reason.NODE_LOST.value: FailureEvidence.NODE,
    Reason.STARTUP_TIMEOUT.value: FailureEvidence.START,
}
"""Evidence of failures that an older release recorded, by reason."""
_AGAINST_NODE = frozenset({FailureEvidence.NODE, FailureEvidence.START, FailureEvidence.XID})

_SYSTEM_PREFIX = "system-"
"""The API server reserves it for the PriorityClasses above all others."""

Priorities = Mapping[str, PriorityRecord]


def affects_scheduling(old: JobView, new: JobView) -> bool:
    """Return True if the update affects scheduling (spec, attempt, placement, failures)."""
    return _scheduling_inputs(old) != _scheduling_inputs(new)


def _scheduling_inputs(job: JobView) -> tuple[object, ...]:
    placement = job.stored_placement or {}
    return (
        job.generation,
        job.annotations,
        job.is_deleting,
        job.attempt,
        job.phase,
        job.backoff_until,
        _unadmitted_since(job),
        job.failures,
        job.move and (job.move, job.last_checkpoint),
        placement.get("attempt"),
        placement.get("blocks"),
    )


def pending_job(
    record: JobRecord,
    checked: Job | list[Problem],
    priorities: Priorities,
    fabrics: Mapping[str, FabricRecord],
    now: float = 0.0,
    request: Callable[[Job], Request] = Request.of,
    *,
    system_classes: bool = False,
) -> PendingJob | Unschedulable | None:
    """Return a job that waits for a placement, or why none is possible; None for other jobs.

    `system_classes` permits the PriorityClasses of the system.
    """
    view = record.view
    if isinstance(checked, list) or checked.spec.suspend:
        return None
    if view.is_finished or view.is_deleting or view.placement or view.backoff_until:
        return None
    name, topology = checked.spec.priority_class_name, checked.spec.topology
    if name is not None and name.startswith(_SYSTEM_PREFIX) and not system_classes:
        return _system_class(name)
    if name is not None and name not in priorities:
        return _no_priority_class(name)
    problem = fabric_problem(topology.fabric if topology else None, fabrics)
    return problem or _next_attempt(record, checked, priorities, now, request)


def _next_attempt(
    record: JobRecord,
    checked: Job,
    priorities: Priorities,
    now: float,
    request: Callable[[Job], Request],
) -> PendingJob:
    """Return a job as it waits, or would wait, for its placement."""
    view, topology = record.view, checked.spec.topology
    priority = priority_of(checked.spec.priority_class_name, priorities)
    wanted = request(checked)
    if wanted.spares and view.start_time:
        # A job that has trained goes on with fewer spares rather than wait for them.
        wanted = replace(wanted, spares_optional=True)
    expected = durations.duration(checked, confirmed(checked, view, now), now)
    return PendingJob(
        uid=record.uid,
        namespace=record.namespace,
        name=record.name,
        priority=priority.value if priority else 0,
        created_at=parse_time(view.creation_time).timestamp(),
        request=wanted,
        fabric=topology.fabric if topology else None,
        attempt=view.attempt,
        max_duration=_max_duration(checked, view, now),
        expected_duration=expected.value if expected else None,
        can_preempt=priority is None or priority.preempts,
        awaits_admission=KUEUE_QUEUE_NAME in view.labels,
        avoided_nodes=frozenset(
            failure["node"]
            for failure in view.failures
            if failure.get("node")
            and (failure["reason"] in _AVOIDED_AFTER or _evidence(failure) in _AGAINST_NODE)
        ),
        network=NetworkRequest.of(checked),
        shared=shared_claims_of(checked.spec),
    )


def _max_duration(job: Job, view: JobView, now: float) -> float | None:
    """Return the seconds until activeDeadlineSeconds, which count from the first placement."""
    limit = durations.deadline(job, view)
    if limit is not None:
        return max(0.0, limit - now)
    policy = job.spec.run_policy
    seconds = policy.active_deadline_seconds if policy else None
    return None if seconds is None else float(seconds)


def holds_nodes(view: JobView) -> bool:
    """Return True if the attempt of a job has a placement, and the job has not finished."""
    return bool(view.placement) and not view.is_finished


def allocation_of(
    record: JobRecord,
    checked: Job | list[Problem],
    priorities: Priorities,
    now: float,
    held: Sequence[str],
) -> Allocation | None:
    """Return what a job holds that holds these nodes, or None if it holds none."""
    view = record.view
    placement = view.stored_placement
    if not placement or not held:
        return None
    known = view if isinstance(checked, list) else confirmed(checked, view, now)
    end = None if isinstance(checked, list) else durations.ends_at(checked, known, now)
    return Allocation(
        uid=record.uid,
        namespace=record.namespace,
        priority=placed_priority(view, priorities),
        nodes=tuple(held),
        resources=placed_resources(view),
        ends_at=end.value if end else None,
        lost_seconds=lost_seconds(known, now),
        preemptible=not view.is_suspended,
        unadmitted_since=_unadmitted_since(view),
        attempt=view.attempt,
    )


def assumed_allocation(job: PendingJob, assignment: Assignment, now: float) -> Allocation:
    """Return what a job holds once its status shows the assignment."""
    return Allocation(
        job.uid,
        job.namespace,
        job.priority,
        assignment.nodes,
        assignment.resources,
        None if job.max_duration is None else now + job.max_duration,
        preemptible=False,
    )


def expired_allocation(record: JobRecord, held: Sequence[str]) -> Allocation | None:
    """Return the nodes of a job's placement that it does not hold any more; None without any."""
    view = record.view
    placement = view.placement
    if not placement or view.is_finished or view.is_deleting:
        return None
    still_held = frozenset(held)
    nodes = tuple(node for node in view.placed_nodes if node not in still_held)
    resources = placed_resources(view)
    found = Allocation(record.uid, record.namespace, 0, nodes, resources, attempt=view.attempt)
    return found if nodes else None


def _unadmitted_since(view: JobView) -> float | None:
    """Return since when Kueue has not admitted the attempt, or None."""
    pods_ready = view.condition(ConditionType.PODS_READY)
    if pods_ready is None or pods_ready["reason"] != Reason.WAITING_FOR_QUOTA:
        return None
    return parse_time(view.attempt_start_time).timestamp()


def running_job(
    record: JobRecord,
    checked: Job | list[Problem],
    priorities: Priorities,
    now: float,
    request: Callable[[Job], Request],
) -> RunningJob | None:
    """Return a job that keeps the placement in its status; None for other jobs."""
    view = record.view
    if isinstance(checked, list) or view.is_finished or view.is_deleting or not view.placement:
        return None
    step = durations.step_seconds(confirmed(checked, view, now))
    running = view.is_true(ConditionType.RUNNING)
    pending = _next_attempt(record, checked, priorities, now, request)
    return RunningJob(
        replace(pending, attempt=view.attempt + 1),
        tuple(view.placed_nodes),
        step.value if step else None,
        settled=running and not checked.spec.suspend,
        relocation_requested=running and view.relocation_requested and view.relocation_ready,
        leaving=frozenset(view.drained_nodes if running and view.may_leave(now) else ()),
    )


def lost_seconds(view: JobView, now: float) -> float:
    """Return the seconds of training since the last checkpoint, or since the attempt started."""
    step, saved = durations.step_seconds(view), view.last_checkpoint
    attempt = max(0.0, now - parse_time(view.attempt_start_time).timestamp())
    if step is not None and saved is not None:
        steps = int(view.progress.get("step", 0)) - saved
        return min(attempt, max(0.0, steps * step.value))
    return attempt


def node_failures(records: Iterable[JobRecord]) -> Iterator[NodeFailure]:
    """Yield the failures of all jobs that speak against a node."""
    for record in records:
        for failure in record.view.failures:
            evidence = _evidence(failure)
            if evidence in _AGAINST_NODE and failure.get("node"):
                yield NodeFailure(
                    failure["node"],
                    parse_time(failure["time"]).timestamp(),
                    record.namespace,
                    f"{record.namespace}/{record.name}",
                    failure["reason"],
                    own=evidence == FailureEvidence.NODE,
                )


def _evidence(failure: Raw) -> str:
    return failure.get("evidence") or _OLDER_EVIDENCE.get(failure["reason"], FailureEvidence.JOB)


def placed_priority(view: JobView, priorities: Priorities) -> int:
    """Return the priority that a job has had since it got its nodes, which its pods have, too.

    A placement of an older release does not have it: then that of the spec counts.
    """
    stored = (view.stored_placement or {}).get("priority")
    if stored is not None:
        return int(stored)
    priority = priority_of(view.priority_class, priorities)
    return priority.value if priority else 0


def priority_of(name: str | None, priorities: Priorities) -> PriorityRecord | None:
    """Return the PriorityClass of a job: the one it names, else the default of the cluster."""
    if name is not None:
        return priorities.get(name)
    return next((item for item in priorities.values() if item.is_default), None)


def _system_class(name: str) -> Unschedulable:
    message = (
        f"spec.priorityClassName: {name!r} is a class of the system; suspend the job and name"
        " another one"
    )
    return Unschedulable(Reason.FORBIDDEN, clean_text(message))


def _no_priority_class(name: str) -> Unschedulable:
    message = (
        f"spec.priorityClassName: no PriorityClass is named {name!r}; create it, or create the job"
        " again with one that exists"
    )
    return Unschedulable(Reason.PRIORITY_CLASS_NOT_FOUND, clean_text(message))
