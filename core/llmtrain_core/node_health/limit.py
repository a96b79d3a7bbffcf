"""How many nodes may be kept from jobs at once, so that no wrong report idles a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from llmtrain_core.node_health.rows import HealthFinding


class ExclusionLimit:
    """How many nodes may be excluded at once: of all, and of each kind; at least one."""

    def __init__(self, kinds: Mapping[str, Hashable], percent: float):
        """`kinds` are all nodes with their kind, and `percent` the share that may be excluded."""
        self.kinds = kinds
        self.of_kind = {
            kind: max(1, int(count * percent / 100))
            for kind, count in Counter(kinds.values()).items()
        }
        self.of_all = max(1, int(len(kinds) * percent / 100))


def nodes_in_force(
    findings: Mapping[str, Sequence[HealthFinding]], limit: ExclusionLimit
) -> frozenset[str]:
    """Return the nodes whose findings have an effect.

    Of more nodes than the limit permits, those that jobs should leave come first, then those whose
    condition has changed last, as the oldest quarantines end first.
    """

    def rank(name: str) -> tuple[bool, str]:
        return any(f.leave for f in findings[name]), max(f.since for f in findings[name])

    chosen: set[str] = set()
    counts: Counter[Hashable] = Counter()
    for name in sorted(sorted(findings), key=rank, reverse=True):
        kind = limit.kinds[name]
        if len(chosen) < limit.of_all and counts[kind] < limit.of_kind[kind]:
            chosen.add(name)
            counts[kind] += 1
    return frozenset(chosen)
