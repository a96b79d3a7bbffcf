"""The levels of each Fabric, which the placement of a running job is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from llmtrain_core.api.defaults import FABRIC_NAME
from llmtrain_core.topology.inventory import Node
from llmtrain_core.topology.label_presets import detect, fit
from llmtrain_core.topology.levels import Levels
from llmtrain_operator.cache.records import FabricRecord

REFRESH_SECONDS = 10.0
"""The levels of a Fabric rarely change, and to compute them takes a pass over all nodes. The
labels of a job's own nodes are read every time."""


def levels_on(fabric: FabricRecord | None, nodes: Iterable[Node]) -> Levels:
    """Return the levels of a Fabric on these nodes. Without a Fabric, detect them from labels."""
    labels = [node.labels for node in nodes]
    return detect(labels) if fabric is None else fit(fabric.levels, labels)


class FabricLevels:
    """The levels of each Fabric, recomputed every `REFRESH_SECONDS`."""

    def __init__(
        self,
        nodes: Callable[[], Iterable[Node]],
        fabric: Callable[[str], FabricRecord | None],
    ):
        self._nodes = nodes
        self._fabric = fabric
        self._known: dict[str | None, tuple[float, FabricRecord | None, Levels]] = {}

    def levels(self, name: str | None) -> Levels:
        """Return the levels of a Fabric. Return none if it does not exist or is invalid."""
        found = self._fabric(name or FABRIC_NAME)
        if (found is None and name is not None) or (found is not None and found.problem):
            return ()
        known = self._known.get(name)
        if known is None or known[1] is not found or time.monotonic() - known[0] > REFRESH_SECONDS:
            levels = levels_on(found, self._nodes())
            known = self._known[name] = (time.monotonic(), found, levels)
        return known[2]
