"""A job waits for the pods and other objects of a deleted job of the same name. Pure.

A deleted job is gone at once. Its pods end later, and the garbage collector deletes its other
objects later: it looks for new kinds every 30 s. Meanwhile the name may be used again. The objects
of both jobs would have the same names, and their pods could write to the same checkpoint folder.

The job holds no nodes while it waits, so the wait has no limit. The condition names the object and
the remedy, because an object may never be collected: a finalizer may keep it.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.queueing import Unschedulable
from llmtrain_operator.cache.child_record import ChildRecord
from llmtrain_operator.cache.disruption_budgets import BudgetRecord
from llmtrain_operator.cache.records import JobRecord, PodRecord
from llmtrain_operator.kube.resources import DISRUPTION_BUDGETS


def wait_for_earlier_job(
    job: JobRecord,
    pods: Iterable[PodRecord],
    children: Iterable[ChildRecord],
    budgets: Iterable[BudgetRecord],
) -> Unschedulable | None:
    """Return why a job has to wait; None if nothing of an earlier job is in its way.

    `pods` are those of all jobs of its name. `children` and `budgets` have the names that its next
    attempt needs. A job trains without a budget, so one that no job owns keeps none waiting.
    """
    text = _pods_left(job, pods) or _objects_left(
        job,
        [
            *((f"{found.resource.plural} {found.name}", found.owner) for found in children),
            *((f"{DISRUPTION_BUDGETS.plural} {b.name}", b.owner) for b in budgets if b.owner),
        ],
    )
    if not text:
        return None
    return Unschedulable(Reason.NAME_CONFLICT, clean_text(f"metadata.name: {text}"))


def _pods_left(job: JobRecord, pods: Iterable[PodRecord]) -> str:
    """A pod that has ended only matters if a pod of the next attempt would have its name."""
    left = sorted(
        pod.name
        for pod in pods
        if not pod.belongs_to(job) and not (pod.ended and pod.attempt != job.view.attempt)
    )
    if not left:
        return ""
    return (
        f"{len(left)} pods of an earlier job of this name are left, such as {left[0]}; the job"
        " starts when they are gone"
    )


def _objects_left(job: JobRecord, objects: Iterable[tuple[str, str]]) -> str:
    """`objects` are the kind and name of each object, and the UID of its owner."""
    taken = [(what, owner) for what, owner in objects if owner != job.uid]
    if not taken:
        return ""
    unowned = [what for what, owner in taken if not owner]
    if unowned:
        return (
            f"{unowned[0]} exists and is not owned by this job; delete it, or create the job with"
            " another name"
        )
    return (
        f"{len(taken)} objects of an earlier job of this name are left, such as {taken[0][0]}; the"
        " job starts when they are gone; delete those that stay"
    )
