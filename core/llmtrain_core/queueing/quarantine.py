"""Nodes that are blamed for failures stay away for a time, from everybody.

One failure is weak evidence: the node becomes a suspect, which everybody tries last. A second one
within an hour puts it out for ten minutes, each further one for twice as long, up to four hours.
Times count from the last failure; nothing has to be remembered but the failures themselves, which
are in the status of the jobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

MEMORY_SECONDS = 3600.0
"""A failure that is older says nothing any more."""
FIRST_SECONDS = 600.0
LONGEST_SECONDS = 4 * 3600.0
STRIKES = 2


@dataclass(frozen=True, slots=True)
class Blame:
    """A failure that names a node."""

    node: str
    time: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Which nodes are out, and which are tried last."""

    until: dict[str, float] = field(default_factory=dict)
    """End of the quarantine, by node, in seconds since the epoch."""
    suspects: frozenset[str] = frozenset()
    changes_at: float | None = None
    """When the next of these ends."""


def quarantine(blames: Iterable[Blame], now: float) -> Quarantine:
    """Weigh the failures as they count now."""
    by_node: dict[str, list[float]] = {}
    for blame in blames:
        by_node.setdefault(blame.node, []).append(blame.time)
    until: dict[str, float] = {}
    suspects: dict[str, float] = {}
    for node, times in by_node.items():
        last = max(times)
        strikes = sum(last - time <= MEMORY_SECONDS for time in times)
        if strikes >= STRIKES:
            length = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** (strikes - STRIKES))
            if last + length > now:
                until[node] = last + length
        if node not in until and last + MEMORY_SECONDS > now:
            suspects[node] = last + MEMORY_SECONDS
    ends = [*until.values(), *suspects.values()]
    return Quarantine(until, frozenset(suspects), min(ends, default=None))
