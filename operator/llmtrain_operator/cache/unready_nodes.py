"""Since when this process has seen each node not ready, on its own monotonic clock.

The time of a condition comes from the clock of another machine. If that is compared with the clock
of the operator, a difference of a minute between the two makes ready nodes lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from llmtrain_operator.cache.records import NodeRecord


class UnreadyNodes:
    """The nodes that are not ready, and when this process saw it first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """`clock` returns monotonic seconds."""
        self._clock = clock
        self._seen: dict[str, float] = {}

    def change(self, old: NodeRecord | None, new: NodeRecord | None) -> None:
        """Follow a change of a node. Each transition of its readiness starts the time again."""
        record = new or old
        assert record is not None
        name = record.node.name
        if new is None or new.node.ready:
            self._seen.pop(name, None)
        elif old is None or old.node.ready or old.since != new.since or name not in self._seen:
            self._seen[name] = self._clock()

    def seconds(self, name: str) -> float:
        """Return for how many seconds a node has been seen not ready; 0 if it is ready."""
        seen = self._seen.get(name)
        return 0.0 if seen is None else self._clock() - seen
