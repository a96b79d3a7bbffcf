"""Policy: no pod stays pinned to a node where it cannot start.

The nodes are checked before pods are created. A pod that kube-scheduler refuses nevertheless is
final evidence. In both cases the gang goes elsewhere: this is neither a failure nor a restart, and
says nothing against the node. The same holds for a pod of the gang's last attempt that does not end
although its node is ready. It cannot train on without its peers, and the new attempt has another
rendezvous address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.failures import append_failure
from llmtrain_operator.job_state.pods import is_stuck, terminating_text
from llmtrain_operator.job_state.release import unplace, unplace_unstarted
from llmtrain_operator.job_state.restart_budget import MAX_BACKOFF_SECONDS, earliest_start
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.policies.node_replacement import find_replacements, replace_nodes

REFUSED_SECONDS = 5.0
"""A pod that kube-scheduler has refused for this long will not start. It tries a pod again one to
two seconds after a node has changed, and may see the change later than the operator."""
REFUSED_BACKOFF_SECONDS = 5.0
"""First delay after a refusal by kube-scheduler that the known state of the node does not explain,
or by the API server."""
SHARED_BACKOFF_SECONDS = 10.0
"""Longest delay after the first refusal where several operators share nodes. It doubles."""
_MAX_NAMED = 3


def leave_blocked_nodes(draft: StatusDraft, nodes: Iterable[str]) -> bool:
    """Move the gang if it cannot start on one of these nodes. Return True if it moves."""
    return leave_nodes(
        draft, {node: found for node in nodes if (found := draft.observed.obstacles(node))}
    )


def leave_nodes(draft: StatusDraft, blocked: Mapping[str, Sequence[str]]) -> bool:
    """Move the gang from these nodes, for the causes given. Return False without any node."""
    if not blocked:
        return False
    text = f"cannot start on {blocked_text(blocked)}"
    replacements = find_replacements(draft, blocked)
    if replacements:
        swaps = "".join(f"; {new} replaces {old}" for old, new in replacements.items())
        replace_nodes(draft, replacements)
        draft.clear_condition_if_present(
            ConditionType.PODS_READY, Reason.NODE_REPLACED, clean_text(f"{text}{swaps}")
        )
        return True
    draft.clear_condition_if_present(ConditionType.PODS_READY, Reason.UNSCHEDULABLE, text)
    unplace(draft, Reason.UNSCHEDULABLE, clean_text(f"{text}; waiting for a new placement"))
    return True


def leave_stuck_pods(draft: StatusDraft) -> bool:
    """Move the gang from the nodes on which a pod of its own does not end. Return True if it moves.

    kube-scheduler counts the pod as long as it exists.
    """
    placed, blocked = frozenset(draft.placed_nodes), dict[str, Sequence[str]]()
    for pod in draft.observed.pods:
        ready = draft.observed.seconds_until_lost(pod.node) == float("inf")
        if pod.node in placed and ready and not pod.ended and is_stuck(draft, pod):
            blocked[pod.node] = (terminating_text(draft, [pod]),)
    return leave_nodes(draft, blocked)


def blocked_text(blocked: Mapping[str, Sequence[str]]) -> str:
    """Return nodes with the causes: `n1 (cpu in use), n2 (cordoned) and 3 more`."""
    named = [f"{node} ({', '.join(found)})" for node, found in sorted(blocked.items())]
    more = len(named) - _MAX_NAMED
    return ", ".join(named[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def release_unschedulable(
    draft: StatusDraft, pods: Sequence[PodRecord], patience: float = REFUSED_SECONDS
) -> bool:
    """Release the nodes of a gang of which kube-scheduler refuses a pod.

    If the state of the node does not explain it, the gang waits for all of its pods, which may be
    scheduled together. It then backs off, because the cause may be the pod: a missing claim, for
    example. The job tries other nodes first; for other jobs the refusal is no evidence.
    """
    refused = [pod for pod in pods if _is_refused(pod)]
    if not refused:
        return False
    if leave_blocked_nodes(draft, [pod.node for pod in refused]):
        _let_others_start(draft)
        return True
    if len(pods) < draft.job.nodes:
        return False
    pod = min(refused, key=lambda pod: (pod.refused_since, pod.index))
    left = patience - draft.observed.refused_seconds.get(pod.uid, 0.0)
    if left > 0:
        draft.reconcile_after(left)
        return False
    text = clean_text(f"pod {pod.name} cannot be scheduled on {pod.node}: {pod.message}", 600)
    append_failure(draft, FailureInfo(Reason.UNSCHEDULABLE, text, node=pod.node))
    unplace_unstarted(draft, Reason.UNSCHEDULABLE, text, REFUSED_BACKOFF_SECONDS)
    until = earliest_start(draft)
    if until > draft.observed.now + timedelta(seconds=MAX_BACKOFF_SECONDS):
        # The gang would hold its next nodes without pods.
        draft.set_field("backoffUntil", max(format_time(until), draft.view.backoff_until))
    return True


def _let_others_start(draft: StatusDraft) -> None:
    """Queue again after a delay that differs from job to job, if operators share the nodes.

    They place their jobs at the same moments: when nodes become free. Each would get a part of the
    nodes of its gang, again and again.
    """
    if not draft.observed.shares_nodes or draft.placement is not None:
        return
    count = draft.view.unstarted_attempts
    longest = SHARED_BACKOFF_SECONDS * 2.0 ** min(count, 4)
    key = f"{JobIdentity.of(draft.observed.raw).uid}/{draft.attempt}"
    share = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32
    draft.set_field("unstartedAttempts", max(count, min(count + 1, 4)))  # others count on from it
    end = draft.observed.now + timedelta(seconds=longest * share)
    draft.set_field("backoffUntil", format_time(end))


def _is_refused(pod: PodRecord) -> bool:
    return bool(pod.refused_since) and not pod.bound and not pod.deleting
