"""What foreign pods use on each node: a sum that every change of a pod updates.

A cluster has many more of them than jobs have pods, and a scheduling cycle must not add them all.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmtrain_operator.cache.records import ForeignPod


class ForeignUsage:
    """Amount in use by node and resource."""

    def __init__(self) -> None:
        self._used: dict[tuple[str, str], int] = {}

    def change(self, old: ForeignPod | None, new: ForeignPod | None) -> None:
        """Replace what a pod used by what it uses now."""
        if old is not None:
            self._add(old, -1)
        if new is not None:
            self._add(new, 1)

    def _add(self, pod: ForeignPod, sign: int) -> None:
        for resource, amount in pod.resources:
            slot = (pod.node, resource)
            left = self._used.get(slot, 0) + sign * amount
            if left:
                self._used[slot] = left
            else:
                self._used.pop(slot, None)

    @property
    def used(self) -> Mapping[tuple[str, str], int]:
        """The current sums. Copy them for another thread."""
        return self._used
