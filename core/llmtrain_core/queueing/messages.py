"""What a waiting job is told. Whoever may read a job may not know what other teams run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice

SHOWN = 3


def kept_message(namespace: str, keys: Sequence[str], ahead: Sequence[str]) -> str:
    """Say for whom room is kept: jobs of the own namespace by name, others as a number."""
    text = f"there is room, but it is kept for jobs ahead: {_named(namespace, keys)}"
    return text + ahead_message(namespace, ahead)


def ahead_message(namespace: str, keys: Sequence[str]) -> str:
    """Say who gets what becomes free first."""
    return f"; ahead in the queue: {_named(namespace, keys)}" if keys else ""


def _named(namespace: str, keys: Sequence[str]) -> str:
    own = f"{namespace}/"
    shown = [*islice((key for key in keys if key.startswith(own)), SHOWN)]
    more = len(keys) - len(shown)
    parts = [*shown, *([f"{more} {'more' if shown else 'of other namespaces'}"] if more else [])]
    return ", ".join(parts)


def preempting_message(count: int) -> str:
    """Say that others stop for the job."""
    if not count:
        return "jobs of lower priority have been stopped for it; their pods have still to end"
    who = "1 job of lower priority stops" if count == 1 else f"{count} jobs of lower priority stop"
    return f"{who} for it; it starts when the pods have ended"


def preempted_message(namespace: str, key: str) -> str:
    """Tell a job that it was stopped, and for whom."""
    who = key if key.startswith(f"{namespace}/") else "a job of another namespace"
    return f"stopped for {who}, which has a higher priority; it goes on from its last checkpoint"


def quarantine_message(until: Mapping[str, float], names: Collection[str]) -> str:
    """Name nodes that are out, and until when."""
    ranked = sorted(names, key=lambda name: (until[name], name))
    shown = [f"{name} until {clock(until[name])}" for name in ranked[:SHOWN]]
    more = len(ranked) - len(shown)
    text = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return f"there is room, but only on nodes that are quarantined after failures: {text}"


def clock(seconds: float) -> str:
    """Write a time as the API does."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
