"""The levels that a Fabric shows: what a job's placement is compared with while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from llmtrain_core.api.defaults import FABRIC_NAME
from llmtrain_core.topology.inventory import Node
from llmtrain_core.topology.levels import Levels, detect, fit
from llmtrain_operator.cache.records import FabricRecord

LASTING_SECONDS = 10.0
"""Which labels are levels hardly ever changes, and to see it takes a look at every node. What the
labels of a job's own nodes say is read each time."""


def levels_on(found: FabricRecord | None, nodes: Iterable[Node]) -> Levels:
    """Return the levels of a Fabric on these nodes; without one, those that the labels show."""
    labels = [node.labels for node in nodes]
    return detect(labels) if found is None else fit(found.levels, labels)


class Maps:
    """The levels of each Fabric, looked at now and then."""

    def __init__(
        self,
        nodes: Callable[[], Iterable[Node]],
        fabric: Callable[[str], FabricRecord | None],
    ):
        self._nodes = nodes
        self._fabric = fabric
        self._known: dict[str | None, tuple[float, FabricRecord | None, Levels]] = {}

    def levels(self, wanted: str | None) -> Levels:
        """Return the levels of the Fabric that a job names; none where it is missing or wrong."""
        found = self._fabric(wanted or FABRIC_NAME)
        if (found is None and wanted is not None) or (found is not None and found.problem):
            return ()
        known = self._known.get(wanted)
        if known is None or known[1] is not found or time.monotonic() - known[0] > LASTING_SECONDS:
            levels = levels_on(found, self._nodes())
            known = self._known[wanted] = (time.monotonic(), found, levels)
        return known[2]
