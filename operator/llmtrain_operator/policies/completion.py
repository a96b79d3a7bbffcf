"""Policy: a job succeeds when the trainer of every pod of its gang has succeeded.

Containers that a webhook adds to the pods do not count, even if they never end or fail.

Pods that have succeeded are recorded while others still run: a node that is drained or restarted
may delete or reject them, and their ranks have nothing left to do.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmtrain_core.api.untrusted import read_json
from llmtrain_operator.cache.job import format_ranges, parse_time
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.pods import current_pods
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.training_progress import apply_report
from llmtrain_operator.policies.ttl_and_deadline import mark_succeeded

RECORD_SECONDS = 2.0
"""Pods of a gang usually end together: they are recorded this long after the first, and at most
this often, so that most jobs need no write for it."""


def complete_if_succeeded(draft: StatusDraft) -> bool:
    """Mark the job succeeded and keep the result in the termination message of rank 0's pod."""
    pods = current_pods(draft)
    if draft.placement is None:
        draft.set_field("completedPods", None)
        return False
    succeeded = [pod for pod in pods if pod.phase == "Succeeded"]
    if len(pods) == len(draft.placed_nodes) == len(succeeded):
        _keep_result(draft, pods[0])
        mark_succeeded(draft, f"all {len(pods)} pods have succeeded")
        draft.set_field("completedPods", None)
        return True
    _record_completed(draft, succeeded)
    return False


def _record_completed(draft: StatusDraft, succeeded: Sequence[PodRecord]) -> None:
    """Record the pods that have succeeded for a moment, unless there is nothing new to record."""
    recorded = draft.view.completed_pods
    if not succeeded and not recorded:
        draft.set_field("completedPods", None)  # of an earlier attempt
    new = [pod for pod in succeeded if pod.index not in recorded]
    if not new:
        return
    ended = min(parse_time(pod.finished) for pod in new)
    passed = (draft.observed.now - ended).total_seconds()
    # The end is a time of another machine: if it is ahead, record the pods now.
    since_end = passed if passed >= 0 else RECORD_SECONDS
    left = RECORD_SECONDS - min(since_end, draft.observed.seconds_since_write)
    if left > 0:
        draft.reconcile_after(left)
        return
    for pod in new:
        if pod.index == 0:
            _keep_result(draft, pod)
    indexes = format_ranges(pod.index for pod in succeeded)
    draft.set_field("completedPods", {"attempt": draft.attempt, "indexes": indexes})


def _keep_result(draft: StatusDraft, head: PodRecord) -> None:
    """Write the result of rank 0 to the status, if its pod still has it."""
    report = read_json(head.message)
    result = report.get("result") if isinstance(report, dict) else None
    if isinstance(result, dict):
        apply_report(draft, result, final=True)
