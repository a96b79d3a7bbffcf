"""A slow uplink, as the scripted times of a job show it: a condition, a metric, and its end."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from typing import Any

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.network.links import JobRanks, LinkPath
from llmtrain_devcluster.api import Api, Object
from llmtrain_devcluster.scripted_node.node import PodScript, ScriptedNodes
from tests.support.operator_harness.advice import CaseBench
from tests.support.operator_harness.harness import (
    OperatorProcess,
    condition,
    reporting,
    status_of,
)
from tests.support.slow_links.reports import report_of

pytestmark = pytest.mark.cluster

SHAPE: dict[str, Any] = {
    "workers": {"nodes": 6},
    "parallelism": {"tensor": 2, "data": 2, "replicate": 3},
    "training": {"steps": 100, "globalBatchSize": 12, "microBatchSize": 1},
}


def ranks_of(job: Object) -> JobRanks:
    """Return the ranks of a job as its status places them."""
    blocks = job["status"]["placement"]["blocks"]
    nodes = [(block["path"], node) for block in blocks for node in block["nodes"]]
    return JobRanks(Layout(tensor=2, data=2, replicate=3), tuple(nodes), 2)


async def report_blocks(said: Object, ranks: JobRanks, slow: set[LinkPath]) -> None:
    """Report a new block of samples again and again, as a trainer does."""
    for block in itertools.count(1):
        said.update(step=block, transfers=report_of(ranks, block, slow, 4.0))
        await asyncio.sleep(0.5)


async def test_a_slow_node_is_shown_while_it_is_slow(
    operator: OperatorProcess, api: Api, scripted_nodes: ScriptedNodes
) -> None:
    scripted_nodes.default = PodScript(exit_after=None)
    tag = secrets.token_hex(3)
    harness = CaseBench(api, f"slow-{tag}", scripted_nodes, tag)
    label = f"example.com/{tag}"
    await harness.enter()
    try:
        await harness.add_nodes(*({label: rack} for rack in "aabbcc"))
        await harness.fabric(rack=label)
        await harness.submit("job", topology={"fabric": tag}, **SHAPE)
        before = await harness.phase("job", "Running")
        ranks = ranks_of(before)
        node = ranks.nodes[-1]  # no other link is crossed by the same groups
        series = f'llmtrain_operator_link_slowdown_ratio{{domain="{node[-1]}",level="node"}}'
        said: Object = {"phase": "training", "attempt": 0, "totalSteps": 100}
        head = await api.get("pods", "job-0-0", harness.namespace)

        async with reporting(head, said), asyncio.TaskGroup() as tasks:
            slow = {node}
            trainer = tasks.create_task(report_blocks(said, ranks, slow))
            degraded = await harness.reason("job", "NetworkDegraded", "SlowNode", seconds=90)
            found = condition(degraded, "NetworkDegraded")
            assert found["status"] == "True"
            said_of_node = rf"transfers over node {node[-1]} take (\d\.\d) times"
            shown = re.search(said_of_node, found["message"])
            assert shown is not None and float(shown[1]) == pytest.approx(4.0, abs=0.3)
            await operator.shows(series)
            slow.clear()
            after = await harness.reason("job", "NetworkDegraded", "TransfersAsUsual", seconds=90)
            trainer.cancel()
        assert condition(after, "NetworkDegraded")["status"] == "False"
        assert status_of(after)["placement"] == status_of(before)["placement"]
        assert status_of(after)["phase"] == "Running" and status_of(after)["restarts"] == 0
        assert series not in operator.metrics()
    finally:
        await harness.leave()
