"""Messages about waiting jobs. They name only jobs of the reader's own namespace.

A user who may read a job may not be allowed to see the jobs of other teams.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice

from llmtrain_core.queueing.quarantine import Exclusion

MAX_NAMED = 3


def reserved_message(
    namespace: str, behind: Sequence[str], ahead: Sequence[str], window: float | None = None
) -> str:
    """Name the jobs for which nodes are reserved: those of the namespace by key, others counted.

    `window` are the seconds for which jobs may use the nodes of a reservation without a start.
    """
    text = f"nodes are free, but reserved for jobs ahead: {_named(namespace, behind)}"
    if window is not None:
        text += (
            "; when these start is unknown, so a job with a"
            f" runPolicy.activeDeadlineSeconds of at most {window:.0f} may start before them"
        )
    return text + ahead_message(namespace, ahead)


def ahead_message(namespace: str, keys: Sequence[str]) -> str:
    """Name the jobs ahead that could use the same nodes."""
    return f"; ahead in the queue: {_named(namespace, keys)}" if keys else ""


def _named(namespace: str, keys: Sequence[str]) -> str:
    own = f"{namespace}/"
    shown = [*islice((key for key in keys if key.startswith(own)), MAX_NAMED)]
    more = len(keys) - len(shown)
    parts = [*shown, *([f"{more} {'more' if shown else 'of other namespaces'}"] if more else [])]
    return ", ".join(parts)


def preempting_message(count: int) -> str:
    """Return the message of a job for which others are preempted."""
    if not count:
        return "other jobs were preempted for it; their pods have not ended yet"
    who = "1 other job is" if count == 1 else f"{count} other jobs are"
    return f"{who} preempted for it; it starts when their pods have ended"


def preempted_message(namespace: str, key: str, *, admitted: bool) -> str:
    """Return the message of a preempted job. `key` is of the job that gets its nodes."""
    who = key if key.startswith(f"{namespace}/") else "a job of another namespace"
    if not admitted:
        return f"{who} gets the nodes, which the job does not use before Kueue admits it"
    return f"preempted by {who}, which has a higher priority; it resumes from its last checkpoint"


def displaced_message(namespace: str, key: str) -> str:
    """Return the message of a job whose pods did not start. `key` is of the job with its nodes."""
    who = key if key.startswith(f"{namespace}/") else "a job of another namespace"
    return f"not all pods were bound to their nodes in time; {who} gets the nodes"


def quarantine_message(
    namespace: str, excluded: Mapping[str, Exclusion], names: Collection[str]
) -> str:
    """Name quarantined nodes, the ends of their quarantine, and whose failures are the cause."""
    ranked = sorted(names, key=lambda name: (excluded[name].until, name))
    shown = [f"{name} until {_exclusion(namespace, excluded[name])}" for name in ranked[:MAX_NAMED]]
    more = len(ranked) - len(shown)
    text = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return f"it fits only with nodes that are quarantined after failures: {text}"


def _exclusion(namespace: str, found: Exclusion) -> str:
    until = format_timestamp(found.until)
    if not found.failures:
        return until
    reasons = ", ".join([*dict.fromkeys(f.reason for f in found.failures)][:MAX_NAMED])
    own = [*dict.fromkeys(f.job for f in found.failures if f.namespace == namespace)]
    parts = own[:MAX_NAMED] + ([f"{len(own) - MAX_NAMED} more"] if len(own) > MAX_NAMED else [])
    others = {f.namespace for f in found.failures if f.namespace != namespace}
    if others:
        one = len({f.job for f in found.failures if f.namespace != namespace}) == 1
        where = "another namespace" if len(others) == 1 else f"{len(others)} other namespaces"
        parts.append(f"{'a job' if one else 'jobs'} of {where}")
    return f"{until} ({reasons} of {', '.join(parts)})"


def format_timestamp(seconds: float) -> str:
    """Format seconds since the epoch as an API timestamp."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
