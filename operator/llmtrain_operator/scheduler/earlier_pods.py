"""A job waits for the pods of a deleted job of the same name. Pure.

A deleted job is gone at once, and its pods end later. Meanwhile its name may be used again. The
pods of both jobs would have the same names, and could write to the same checkpoint folder.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.queueing import Unschedulable
from llmtrain_operator.cache.records import JobRecord, PodRecord


def wait_for_earlier_pods(job: JobRecord, pods: Iterable[PodRecord]) -> Unschedulable | None:
    """Return why a job has to wait; `pods` are those of all jobs of its name.

    A pod that has ended only matters if a pod of the next attempt would have its name.
    """
    left = sorted(
        pod.name
        for pod in pods
        if not pod.belongs_to(job) and not (pod.ended and pod.attempt != job.view.attempt)
    )
    if not left:
        return None
    text = (
        f"metadata.name: {len(left)} pods of an earlier job of this name are left, such as"
        f" {left[0]}; the job starts when they are gone"
    )
    return Unschedulable(Reason.NAME_CONFLICT, clean_text(text))
