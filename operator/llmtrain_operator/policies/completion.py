"""Policy: the job has succeeded when every pod of its gang has."""

from __future__ import annotations

from llmtrain_operator.cache.json_text import read_json
from llmtrain_operator.job_state.pods import current
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.training_progress import take
from llmtrain_operator.policies.ttl_and_deadline import succeed


def completion(draft: StatusDraft) -> bool:
    """Look whether all pods are done, and keep the result that rank 0 left."""
    pods = current(draft)
    if draft.placement is None or len(pods) != draft.job.nodes:
        return False
    if any(pod.phase != "Succeeded" for pod in pods):
        return False
    told = read_json(pods[0].message)
    result = told.get("result") if isinstance(told, dict) else None
    if isinstance(result, dict):
        take(draft, result, final=True)
    succeed(draft, f"all {len(pods)} pods have succeeded")
    return True
