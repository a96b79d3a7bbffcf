"""A monitor of slow links without pauses, and jobs that report to it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.network.links import LinkPath
from llmtrain_core.topology.levels import NODE, FabricLevel, Levels
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.progress.link_monitor import JobLinks, LinkMonitor, ranks_of
from tests.support.operator_harness.observed import status
from tests.support.operator_harness.scheduling import record
from tests.support.slow_links.reports import report_of

LEVELS: Levels = (FabricLevel("rack", "rack"), NODE)
SHAPE: dict[str, Any] = {
    "workers": {"nodes": 6, "gpusPerNode": 2},
    "parallelism": {"tensor": 2, "data": 2, "replicate": 3},
    "training": {"steps": 100, "globalBatchSize": 12, "microBatchSize": 1},
}
"""Six nodes: each group of `dp` spans another pair of racks, each of `rep` all three."""


def job(name: str, namespace: str = "ns", attempt: int = 0, **spec: Any) -> JobRecord:
    placement = {
        "attempt": attempt,
        "gpusPerNode": 2,
        "blocks": [
            {"path": "a", "nodes": ["a0"]},
            {"path": "b", "nodes": ["b0", "b1"]},
            {"path": "c", "nodes": ["c0", "c1"]},
            {"path": "a", "nodes": ["a1"]},
        ],
        "levels": [{"level": "rack", "domains": 3}, {"level": "node", "domains": 6}],
    }
    before = status(ConditionType.RUNNING, placement=placement, attempt=attempt)
    return record(name, before, namespace, **{**SHAPE, **spec})


def checked(found: JobRecord) -> Job:
    valid = check(found.name, found.raw["spec"])
    assert isinstance(valid, Job), valid
    return valid


class MonitoredJobs:
    """A monitor whose pauses take no time, and the jobs that it was told to wake."""

    def __init__(self) -> None:
        self.woken: list[str] = []
        self.pauses: list[float] = []
        self.monitor = LinkMonitor(0.0, self.woken.append, self._sleep)
        self.blocks: dict[str, int] = {}

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def report(
        self,
        found: JobRecord,
        slow: Collection[LinkPath] = (),
        factor: float = 3.0,
        levels: Levels = LEVELS,
    ) -> JobLinks:
        """Report a block in which groups that cross these links are slower."""
        self.blocks[found.uid] = self.blocks.get(found.uid, 0) + 1
        ranks = ranks_of(found.view, checked(found), LEVELS)
        assert ranks is not None
        document = report_of(ranks, self.blocks[found.uid], slow, factor)
        said = {"attempt": found.view.attempt, "transfers": document}
        self.monitor.observe(found, checked(found), levels, said)
        if self.monitor._task is not None:
            await self.monitor._task
        return self.links(found, levels)

    def links(self, found: JobRecord, levels: Levels = LEVELS) -> JobLinks:
        return self.monitor.observe(found, checked(found), levels, None)

    def named(self, namespace: str = "ns") -> dict[LinkPath, float]:
        slow = self.monitor.slow_links()
        return dict(slow["default"].of(namespace)) if slow else {}
