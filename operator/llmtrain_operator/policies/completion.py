"""Policy: a job succeeds when every pod of its gang has succeeded."""

from __future__ import annotations

from llmtrain_core.api.untrusted import read_json
from llmtrain_operator.job_state.pods import current_pods
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.training_progress import apply_report
from llmtrain_operator.policies.ttl_and_deadline import mark_succeeded


def complete_if_succeeded(draft: StatusDraft) -> bool:
    """Mark the job succeeded and keep the result in the termination message of rank 0's pod."""
    pods = current_pods(draft)
    if draft.placement is None or len(pods) != len(draft.placed_nodes):
        return False
    if any(pod.phase != "Succeeded" for pod in pods):
        return False
    report = read_json(pods[0].message)
    result = report.get("result") if isinstance(report, dict) else None
    if isinstance(result, dict):
        apply_report(draft, result, final=True)
    mark_succeeded(draft, f"all {len(pods)} pods have succeeded")
    return True
