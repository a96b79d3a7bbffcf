"""Classify the failure of a pod: find the first cause and decide whether a retry may help."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from llmtrain_core.api import env
from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.api.failure_info import RESERVED_REASONS, FailureEvidence, FailureInfo
from llmtrain_core.node_health.xid import action_of_codes
from llmtrain_core.topology.resources import is_device
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.pods import current_pods
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.metrics.reasons import POD_REASONS
from llmtrain_operator.scheduler.usage import placed_resources

_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]{0,126}[A-Za-z0-9_])?")
_RESERVED = RESERVED_REASONS | POD_REASONS
"""What the operator and Kubernetes find out themselves. A container cannot give such a reason."""
SIGNAL_EXIT_CODES = frozenset({128 + 9, 128 + 15})
"""Exit codes of the containers of a deleted pod: SIGKILL and SIGTERM."""
_REJECTED_FOR_POD = frozenset(
    {
        "AppArmor",
        "NodeAffinity",
        "NodeName",
        "NodePorts",
        "PodOSNotSupported",
        "PodOSSelectorNodeLabelDoesNotMatch",
        "SMTAlignmentError",
        "SysctlForbidden",
        "TaintToleration",
        "TopologyAffinityError",
    }
)
"""Reasons of the kubelet to reject a pod that depend on the pod: on other nodes, and for other
jobs, the result may be another one."""
_OUT_OF = "OutOf"
"""Prefix of the kubelet's reasons to reject a pod for a resource."""
_START_ERRORS = frozenset({"ContainerCannotRun", "StartError"})
"""Reasons of a container that its runtime could not start, with this exit code."""
_START_ERROR_CODE = 128


def first_cause(failed: Sequence[PodRecord]) -> PodRecord:
    """Return the pod that failed first.

    A pod that never started comes before its peers. Pods that only lost a peer come last. A GPU
    that cannot be used comes first: its peers may fail sooner, in a collective.
    """

    def order(pod: PodRecord) -> tuple[bool, bool, bool, str, int]:
        ended = pod.finished or "~"
        return not _severe_xids(pod), is_consequence(pod), not pod.rejected, ended, pod.index

    return min(failed, key=order)


def is_consequence(pod: PodRecord) -> bool:
    """Return True if a pod failed only because another one did."""
    return pod.exit_code == env.EXIT_PEER_LOST and not pod.disruption and not pod.failed_init


def failure_of(draft: StatusDraft, failed: Sequence[PodRecord]) -> FailureInfo:
    """Return the failure of a gang of which these pods have failed."""
    pod = first_cause(failed)
    found = classify(pod)
    if found.evidence == FailureEvidence.NODE and not _node_alone_rejected(draft, pod):
        return replace(found, evidence=FailureEvidence.START)
    could_not_start = pod.reason in _START_ERRORS and pod.exit_code == _START_ERROR_CODE
    if could_not_start and any(peer.phase == "Running" for peer in current_pods(draft)):
        return replace(found, evidence=FailureEvidence.START, keeps_nodes=False)
    return found


def _node_alone_rejected(draft: StatusDraft, pod: PodRecord) -> bool:
    """Return True if nothing but its node explains that the kubelet rejected a pod.

    A tenant could pin a pod of its own, which looks like one of the gang, to a node where it cannot
    start. And the node may be full, because other pods were faster.
    """
    nodes, name = draft.placed_nodes, JobIdentity.of(draft.observed.raw).pod(pod.attempt, pod.index)
    if pod.name != name or nodes[pod.index : pod.index + 1] != [pod.node]:
        return False
    needs = placed_resources(draft.view)
    refused = pod.reason.removeprefix(_OUT_OF)
    if any(
        amount > needs.get(resource, 0)
        for resource, amount in pod.resources
        if resource == refused or is_device(resource)
    ):
        return False
    return not draft.observed.obstacles(pod.node)


def classify(pod: PodRecord) -> FailureInfo:
    """Return the failure of a failed or deleted pod."""
    where = f"pod {pod.name} on {pod.node}"
    if pod.failed_init:
        where = f"init container {pod.failed_init} of {where}"
    ended_by_signal = pod.exit_code is None or pod.exit_code in SIGNAL_EXIT_CODES
    if pod.deleting and ended_by_signal and not pod.disruption:
        return pod_deleted_failure(pod.name, pod.node)
    if pod.disruption or pod.exit_code is None:
        # The cluster ended the pod, so the exit code of the container is not the cause.
        cause = pod.disruption or pod.reason
        known = bool(_REASON.fullmatch(cause))
        text = pod.message or cause if known else f"{cause}: {pod.message}"
        return FailureInfo(
            cause if known else Reason.POD_FAILED,
            clean_text(f"{where}: {text.strip(': ') or Reason.POD_FAILED}"),
            exit_code=pod.exit_code,
            node=pod.node,
            transient=True,
            keeps_nodes=False,
            evidence=_evidence(pod),
        )
    if pod.reason == "OOMKilled":
        message = (
            f"spec.workers.initContainers: {where} ran out of memory; raise its memory limit"
            if pod.failed_init
            else f"spec.workers.resources: {where} ran out of memory; raise the memory limit or"
            " lower training.microBatchSize"
        )
        return FailureInfo(
            Reason.OUT_OF_MEMORY,
            clean_text(message),
            exit_code=pod.exit_code,
            node=pod.node,
            transient=True,
        )
    reason, message = _read_termination_message(pod)
    if is_consequence(pod):
        reason = Reason.PEER_LOST
    text = clean_text(f"{message} ({where}, exit code {pod.exit_code})")
    found = FailureInfo(reason, text, exit_code=pod.exit_code, node=pod.node)
    xids = _severe_xids(pod)
    if not xids:
        return found
    return replace(found, xids=xids, keeps_nodes=False, evidence=FailureEvidence.XID)


def _severe_xids(pod: PodRecord) -> tuple[int, ...]:
    """Return the Xids in the message of a pod if a GPU cannot be used after them; else nothing.

    The container may lie. So this is what a job says of a node, not evidence of the node's own.
    """
    if pod.failed_init or pod.exit_code != env.EXIT_GPU_ERROR:
        return ()
    found = FailureInfo.from_termination_message(pod.message)
    return found.xids if found is not None and action_of_codes(found.xids).is_severe else ()


def _evidence(pod: PodRecord) -> FailureEvidence:
    """Return what the end of a pod that its container did not cause is evidence of."""
    if pod.rejected:
        return FailureEvidence.START if pod.reason in _REJECTED_FOR_POD else FailureEvidence.NODE
    return (
        FailureEvidence.DISRUPTION if pod.disruption and not pod.over_limit else FailureEvidence.JOB
    )


def pod_deleted_failure(name: str, node: str) -> FailureInfo:
    """Return the failure of a pod that another client deleted."""
    message = f"pod {name} on {node} was deleted by another client"
    return FailureInfo(Reason.POD_DELETED, message, node=node, evidence=FailureEvidence.DISRUPTION)


def _read_termination_message(pod: PodRecord) -> tuple[str, str]:
    """Return reason and message. A container may write anything, but no word that is reserved."""
    found = FailureInfo.from_termination_message(pod.message)
    if found is None:
        text = clean_text(pod.message, 400)
        return Reason.EXIT_CODE, text or "the container exited without a termination message"
    text = (f"{found.field}: " if found.field else "") + found.message
    text += f"; {found.remedy}" if found.remedy else ""
    if found.reason in _RESERVED:
        return Reason.EXIT_CODE, clean_text(f"{found.reason}, as the container says: {text}", 900)
    reason = found.reason if _REASON.fullmatch(found.reason) else Reason.EXIT_CODE
    return reason, clean_text(text, 900)
