"""Which nodes of its placement a job holds. Pure.

A placement holds its nodes for a bounded time until pods are bound to them. After that only pods
hold nodes. So a job whose pods are refused, gated or unschedulable does not keep others waiting,
whatever its `startupTimeout` is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.job import JobView, parse_time
from llmtrain_operator.cache.records import JobRecord, PodRecord
from llmtrain_operator.config import START_RESERVATION_SECONDS

HeldNodes = Mapping[str, Sequence[str]]
"""The nodes that each job holds for its ranks, by UID."""


def held_by_jobs(
    jobs: Iterable[JobRecord],
    pods: Iterable[PodRecord],
    now: float,
    reservation: float = START_RESERVATION_SECONDS,
) -> HeldNodes:
    """Return the nodes that jobs hold. A job that is being deleted holds nothing but its pods."""
    placed = {job.uid: job for job in jobs if job.view.stored_placement}
    by_job: dict[str, list[PodRecord]] = {}
    for pod in pods:
        job = placed.get(pod.owner)
        if job is not None and pod.belongs_to(job):
            by_job.setdefault(job.uid, []).append(pod)
    found = {
        uid: held_nodes(job.view, by_job.get(uid, ()), now, reservation)
        for uid, job in placed.items()
    }
    return {uid: nodes for uid, nodes in found.items() if nodes}


def held_nodes(
    view: JobView,
    pods: Iterable[PodRecord],
    now: float,
    reservation: float = START_RESERVATION_SECONDS,
) -> tuple[str, ...]:
    """Return the nodes that a job holds; `pods` are those that it owns.

    Each node is held for `reservation` seconds from the start of the attempt, then while a pod is
    bound to it, and for as long again after the pod has ended. The gang may restart there. Spare
    nodes are not held.
    """
    if view.is_finished or view.is_deleting:
        return ()
    placed = view.placed_nodes
    attempt = int((view.stored_placement or {}).get("attempt", 0))
    current = [pod for pod in pods if pod.attempt == attempt]
    completed = view.completed_pods
    if _all_succeeded(current, completed, placed):
        return ()
    if now < parse_time(view.attempt_start_time).timestamp() + reservation:
        return tuple(placed)
    by_node: dict[str, list[PodRecord]] = {}
    for pod in current:
        by_node.setdefault(pod.node, []).append(pod)
    running = view.is_true(ConditionType.RUNNING)
    return tuple(
        node
        for index, node in enumerate(placed)
        # A running gang whose pod is missing is restarted at once.
        if (running and node not in by_node and index not in completed)
        or any(_holds(pod, now - reservation) for pod in by_node.get(node, ()))
    )


def _holds(pod: PodRecord, since: float) -> bool:
    return pod.bound and (not pod.ended or parse_time(pod.finished).timestamp() > since)


def _all_succeeded(
    pods: Sequence[PodRecord], completed: frozenset[int], placed: Sequence[str]
) -> bool:
    """Return True if the whole gang has succeeded. The status may not show it yet."""
    succeeded = completed | {pod.index for pod in pods if pod.phase == "Succeeded"}
    return bool(placed) and len(succeeded) == len(placed)
