"""From what pods and nodes show to the first cause of a failure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain_core.api import env
from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_operator.cache.records import PodRecord, read_json

_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]{0,126}[A-Za-z0-9_])?")
FIRST_RETRYABLE_EXIT_CODE = 128
SIGNAL_EXIT_CODES = frozenset({128 + 9, 128 + 15})
"""How containers of a deleted pod end: killed, or asked to end."""
IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "ImageInspectError",
    }
)


@dataclass(frozen=True, slots=True)
class FailureInfo:
    """One failure, classified."""

    reason: str
    message: str
    retryable: bool
    node: str = ""
    exit_code: int | None = None
    keeps_nodes: bool = True
    """Whether the next attempt may sit where this one sat."""


def first_cause(failed: Sequence[PodRecord]) -> PodRecord:
    """Choose the pod that failed first; one that only lost its peers is never the cause."""
    return min(failed, key=lambda pod: (is_consequence(pod), pod.finished or "~", pod.index))


def is_consequence(pod: PodRecord) -> bool:
    """Whether a pod failed only because another one did."""
    return pod.exit_code == env.EXIT_PEER_LOST and not pod.disruption


def classify(pod: PodRecord) -> FailureInfo:
    """Say why a failed pod failed, and whether trying again may help."""
    where = f"pod {pod.name} on {pod.node}"
    ended_by_signal = pod.exit_code is None or pod.exit_code in SIGNAL_EXIT_CODES
    if pod.deleting and ended_by_signal and not pod.disruption:
        return pod_deleted_failure(pod.name, pod.node)
    if pod.disruption or pod.exit_code is None:
        # Whatever its container made of it: the pod was ended from outside.
        reason = pod.disruption or pod.reason
        reason = reason if _REASON.fullmatch(reason) else Reason.POD_FAILED
        message = f"{where}: {pod.message or reason}"
        return FailureInfo(
            reason, clean_text(message), True, pod.node, pod.exit_code, keeps_nodes=False
        )
    if pod.reason == "OOMKilled":
        message = (
            f"spec.workers.resources: {where} ran out of memory; raise the memory limit, or lower"
            " training.microBatchSize"
        )
        return FailureInfo(Reason.OUT_OF_MEMORY, clean_text(message), True, pod.node, pod.exit_code)
    reason, message = _read_termination_message(pod)
    if is_consequence(pod):
        reason = Reason.PEER_LOST
    text = clean_text(f"{message} ({where}, exit code {pod.exit_code})")
    retryable = pod.exit_code >= FIRST_RETRYABLE_EXIT_CODE
    return FailureInfo(reason, text, retryable, pod.node, pod.exit_code)


def pod_deleted_failure(name: str, node: str) -> FailureInfo:
    """Return the evidence of a pod that is going or gone, and not by our hand."""
    message = f"pod {name} on {node} was deleted by someone else"
    return FailureInfo(Reason.POD_DELETED, message, True, node)


def _read_termination_message(pod: PodRecord) -> tuple[str, str]:
    """Read the termination message: ours is JSON, others write what they like."""
    parsed = read_json(pod.message)
    error = parsed.get("error") if isinstance(parsed, dict) else None
    words = (
        {k: v for k, v in error.items() if isinstance(v, str)} if isinstance(error, dict) else {}
    )
    if not {"reason", "message"} <= words.keys():
        text = clean_text(pod.message, 400)
        return Reason.EXIT_CODE, text or "the container ended without a message"
    reason, field, remedy = words["reason"], words.get("field"), words.get("remedy")
    text = (f"{field}: " if field else "") + words["message"] + (f"; {remedy}" if remedy else "")
    return (reason if _REASON.fullmatch(reason) else Reason.EXIT_CODE), clean_text(text, 900)
