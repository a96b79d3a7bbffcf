"""How often a gang restarts: by the cause of its failures, by its progress, and in an hour. Pure.

A failure of the job itself counts towards `maxRestarts`, until there is a newer checkpoint. A
disruption by the cluster does not count. What bounds both is the delay of the next attempt, which
grows with the number of failures. So neither a cluster that disrupts a job again and again nor a
job that reports checkpoints that do not exist starts pods without end: the job waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from llmtrain_core.api.defaults import MAX_FAILURES
from llmtrain_core.api.failure_info import FailureEvidence, FailureInfo
from llmtrain_operator.cache.job import Raw, parse_time
from llmtrain_operator.job_state.status_draft import StatusDraft

BACKOFF_RESET_SECONDS = 600.0
MAX_BACKOFF_SECONDS = 60.0
"""Longest delay for which a gang keeps its nodes."""
BOUND_SECONDS = 3600.0
BOUND_FAILURES = MAX_FAILURES
"""With so many failures in BOUND_SECONDS the next attempts are BOUND_DELAY_SECONDS apart. The
status does not have more of them."""
BOUND_DELAY_SECONDS = BOUND_SECONDS / BOUND_FAILURES


def is_disruption(failure: FailureInfo) -> bool:
    """Return True if the cluster ended the attempt, False if the job itself failed.

    The node was lost, its kubelet rejected the pod, or Kubernetes or another client ended the pod:
    drains, evictions, preemption by kube-scheduler, spot nodes, maintenance.
    """
    if failure.evidence is FailureEvidence.START:
        return failure.transient  # rejected by the kubelet, not late
    return failure.evidence in (FailureEvidence.NODE, FailureEvidence.DISRUPTION)


def count_restart(draft: StatusDraft) -> None:
    """Count a restart after a failure of the job itself.

    The step never decreases: a job that resumes from an older checkpoint has made no progress
    before it saves a newer one.
    """
    view = draft.view
    draft.set_field("restartsCountTowardsMax", view.restarts_towards_max + 1)
    newest = max(view.restart_checkpoint, view.last_checkpoint or 0)
    draft.set_field("restartCheckpointStep", newest)


def refill_restarts(draft: StatusDraft) -> None:
    """Show that a newer checkpoint has refilled maxRestarts."""
    if "restartsCountTowardsMax" in draft.status:
        draft.set_field("restartsCountTowardsMax", draft.view.restarts_towards_max)


def restart_delay(failures: Sequence[Raw]) -> float:
    """Return the seconds from the last of these failures to the next attempt, oldest first.

    0, 1, 2, 4, ... MAX_BACKOFF_SECONDS after consecutive failures. A failure more than
    BACKOFF_RESET_SECONDS after the previous one starts again at 0.
    """
    times = [parse_time(failure["time"]).timestamp() for failure in failures]
    if not times:
        return 0.0
    if len(times) >= BOUND_FAILURES and times[-1] - times[-BOUND_FAILURES] <= BOUND_SECONDS:
        return BOUND_DELAY_SECONDS
    consecutive = 1
    for later, earlier in pairwise(reversed(times)):
        if later - earlier > BACKOFF_RESET_SECONDS:
            break
        consecutive += 1
    return min(MAX_BACKOFF_SECONDS, 2.0 ** (consecutive - 2)) if consecutive > 1 else 0.0


def earliest_start(draft: StatusDraft) -> datetime:
    """Return when the next attempt may start."""
    failures = draft.view.failures
    if not failures or draft.view.restarts == 0:
        return parse_time("")
    return parse_time(failures[-1]["time"]) + timedelta(seconds=restart_delay(failures))
