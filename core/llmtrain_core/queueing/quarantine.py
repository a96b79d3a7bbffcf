"""Quarantine of nodes that caused failures.

Evidence of the node's own (it was lost, or its kubelet rejected a pod) counts for all jobs. What
only jobs say counts for other jobs of their namespace, and for all jobs once jobs of different
namespaces agree: one tenant takes no node from others. (The job itself avoids the node at once.)

One failure is weak evidence: the node becomes a suspect, which placements use last. A second one
within an hour quarantines it for ten minutes, each further one for twice as long, up to four hours.
Of one job, and for other namespaces of one namespace, only the last failure counts. Times count
from the last failure. Only a share of the nodes is in quarantine at once: the oldest quarantines
end early. The only state are the failures in the status of the jobs.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from llmtrain_core.node_health import ExclusionLimit

FAILURE_WINDOW_SECONDS = 3600.0
"""Older failures do not count."""
FIRST_SECONDS = 600.0
MAX_SECONDS = 4 * 3600.0
CLOCK_SKEW_SECONDS = 300.0
"""Failures that lie further in the future do not count. Another process may have recorded them."""
MIN_FAILURES = 2
MAX_EXCLUDED_PERCENT = 10.0
"""Default share of the nodes that may be in quarantine at once."""


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """A failure that names a node."""

    node: str
    time: float
    """Seconds since the epoch."""
    namespace: str
    job: str
    """`namespace/name` of the job that failed."""
    reason: str
    own: bool = False
    """Whether the evidence is the node's own. Otherwise only the job speaks against the node."""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """The quarantine of one node."""

    until: float
    """Its end in seconds since the epoch."""
    since: float = 0.0
    """Time of the last failure."""
    failures: tuple[NodeFailure, ...] = ()
    """Why, newest first."""


@dataclass(frozen=True, slots=True)
class NodeLists:
    """The nodes that jobs of a namespace may not use, and those that they use last."""

    excluded: Mapping[str, Exclusion] = field(default_factory=dict)
    suspects: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The quarantined nodes and the suspects, for each namespace."""

    for_all: NodeLists = field(default_factory=NodeLists)
    """What holds for namespaces without a failure of their own."""
    by_namespace: Mapping[str, NodeLists] = field(default_factory=dict)
    """What holds for the others."""

    @property
    def exists(self) -> bool:
        """Whether a node is excluded for any namespace."""
        return any(lists.excluded for lists in (self.for_all, *self.by_namespace.values()))

    def of(self, namespace: str) -> NodeLists:
        """Return what holds for a namespace."""
        return self.by_namespace.get(namespace, self.for_all)


def quarantine(
    failures: Iterable[NodeFailure],
    now: float,
    nodes: Mapping[str, Hashable],
    max_percent: float = MAX_EXCLUDED_PERCENT,
    avoided: Collection[str] = (),
    suspects: Collection[str] = (),
) -> Quarantine:
    """Return the quarantine that follows from the failures.

    `nodes` are all nodes that exist, with their kind. For any job at most `max_percent` of all
    nodes and of those of each kind are excluded, but at least one. `avoided` are those that jobs
    avoid for their health: they count towards the limit, and need no quarantine. `suspects` are
    further nodes that all jobs use last.
    """
    by_node: dict[str, list[NodeFailure]] = {}
    speakers: dict[str, set[str]] = {}
    """Nodes that jobs of a namespace speak against."""
    for failure in sorted(failures, key=lambda f: (-f.time, f.job)):
        past = now - failure.time
        recent = -CLOCK_SKEW_SECONDS <= past < FAILURE_WINDOW_SECONDS + MAX_SECONDS
        if failure.node in nodes and failure.node not in avoided and recent:
            by_node.setdefault(failure.node, []).append(failure)
            if not failure.own:
                speakers.setdefault(failure.namespace, set()).add(failure.node)
    limit = _Limit(nodes, max_percent, avoided)
    further = frozenset(suspects)
    for_all = {node: _relevant(found, "") for node, found in by_node.items()}
    return Quarantine(
        _lists(for_all, now, limit, further),
        {
            namespace: _lists(
                for_all | {node: _relevant(by_node[node], namespace) for node in names},
                now,
                limit,
                further,
            )
            for namespace, names in speakers.items()
        },
    )


class _Limit:
    """How many nodes may be excluded at once: of all, and of each kind."""

    def __init__(self, nodes: Mapping[str, Hashable], percent: float, avoided: Collection[str]):
        limit = ExclusionLimit(nodes, percent)
        self._kinds = nodes
        self._most = dict(limit.of_kind)
        for name in avoided:
            self._most[nodes[name]] -= 1
        self._most_of_all = limit.of_all - len(avoided)

    def newest(self, exclusions: Mapping[str, Exclusion]) -> dict[str, Exclusion]:
        """Return the exclusions that no later one has ended, because there were too many."""
        held: dict[str, Exclusion] = {}
        of_kind: dict[Hashable, dict[str, None]] = {kind: {} for kind in self._most}
        ends: list[tuple[float, str]] = []

        def end(name: str) -> None:
            if held.pop(name, None) is not None:
                del of_kind[self._kinds[name]][name]

        for node, found in sorted(exclusions.items(), key=lambda item: (item[1].since, item[0])):
            while ends and ends[0][0] <= found.since:
                end(heappop(ends)[1])
            kind = self._kinds[node]
            held[node], of_kind[kind][node] = found, None
            heappush(ends, (found.until, node))
            if len(of_kind[kind]) > self._most[kind]:
                end(next(iter(of_kind[kind])))
            elif len(held) > self._most_of_all:
                end(next(iter(held)))
        return held


def _lists(
    by_node: Mapping[str, Sequence[NodeFailure]],
    now: float,
    limit: _Limit,
    further: frozenset[str],
) -> NodeLists:
    """Return the lists that follow from the failures of each node, newest first."""
    exclusions: dict[str, Exclusion] = {}
    for node, found in by_node.items():
        count = sum(found[0].time - failure.time <= FAILURE_WINDOW_SECONDS for failure in found)
        if count >= MIN_FAILURES:
            length = min(MAX_SECONDS, FIRST_SECONDS * 2.0 ** min(count - MIN_FAILURES, 10))
            last = found[0].time
            exclusions[node] = Exclusion(last + length, last, tuple(found[:count]))
    held = limit.newest(exclusions)
    excluded = {node: found for node, found in held.items() if found.until > now}
    suspects = frozenset(
        node
        for node, found in by_node.items()
        if found and node not in excluded and found[0].time + FAILURE_WINDOW_SECONDS > now
    )
    return NodeLists(excluded, suspects | (further - excluded.keys()))


def _relevant(failures: Iterable[NodeFailure], namespace: str) -> list[NodeFailure]:
    """Return the failures of one node, newest first, that count for a namespace.

    For the empty name: for a namespace whose jobs do not speak against the node.
    """
    found: list[NodeFailure] = []
    said: dict[str, NodeFailure] = {}
    for failure in failures:
        if failure.own:
            found.append(failure)
        else:
            speaker = failure.job if failure.namespace == namespace else failure.namespace
            said.setdefault(speaker, failure)
    if said:
        last = max(failure.time for failure in said.values())
        recent = [f for f in said.values() if last - f.time <= FAILURE_WINDOW_SECONDS]
        if len({failure.namespace for failure in recent}) < MIN_FAILURES:
            recent = [failure for failure in recent if failure.namespace == namespace]
        found += recent
    return sorted(found, key=lambda f: (-f.time, f.job))
