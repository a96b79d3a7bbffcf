"""Policy: the job has succeeded when every pod of its gang has."""

from __future__ import annotations

from llmtrain_operator.lifecycle.draft import Draft
from llmtrain_operator.lifecycle.finish import succeed
from llmtrain_operator.lifecycle.pods import current
from llmtrain_operator.lifecycle.progress import take
from llmtrain_operator.reading import read_json


def completion(draft: Draft) -> bool:
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
