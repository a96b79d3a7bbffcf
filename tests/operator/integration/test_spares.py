"""A spare node is reserved, replaces a failed node, and is released at the end."""

from __future__ import annotations

import pytest

from llmtrain_core.api import labels
from llmtrain_devcluster.scripted_node.node import PodScript
from tests.support.operator_harness.harness import (
    OperatorHarness,
    OperatorProcess,
    condition,
    status_of,
)
from tests.support.operator_harness.queue_watch import QueueWatcher, Replay

pytestmark = pytest.mark.cluster

LEAF = "network.topology.nvidia.com/leaf"


async def test_a_spare_is_reserved_used_and_released(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    here, there = {LEAF: "near"}, {LEAF: "far"}
    n0, n1, n2, _ = await harness.add_nodes(here, here, here, there)
    harness.nodes.default = PodScript(exit_after=None)
    watcher = QueueWatcher(harness.api, harness.namespace)
    watcher.start()
    await harness.submit("safe", topology={"spares": 1})
    running = await harness.runs("safe", attempt=0)
    placement = status_of(running)["placement"]
    assert [block["nodes"] for block in placement["blocks"]] == [[n0, n1]]
    assert placement["spares"] == [{"path": "near", "nodes": [n2]}], "in the same leaf"
    assert status_of(running)["placementSummary"] == "2 nodes · 1 leaf · 1 spare"
    assert len(await harness.pods()) == 2, "no pod runs on a spare"
    await harness.submit("other")
    waiting = await harness.wait(
        "other", lambda job: condition(job, "Placed").get("reason") == "InsufficientGpus"
    )
    assert "1 of 4 have them" in condition(waiting, "Placed")["message"]

    await harness.nodes.node_not_ready(n1)
    again = await harness.runs("safe", attempt=1)
    placement = status_of(again)["placement"]
    assert placement["blocks"] == [{"path": "near", "nodes": [n0, n2]}]
    assert "spares" not in placement and status_of(again)["restarts"] == 1
    where = {
        p["metadata"]["labels"][labels.NODE_INDEX]: p["spec"]["nodeName"]
        for p in await harness.pods(f"{labels.ATTEMPT}=1")
    }
    assert where == {"0": n0, "1": n2}
    assert status_of(await harness.job("other"))["phase"] == "Queued"
    await operator.shows('llmtrain_operator_recovery_seconds_count{action="ReplaceNode"} 1.0')

    await harness.nodes.node_ready(n1)
    await harness.phase("other", "Running")
    await harness.submit("late", topology={"spares": 1}, workers={"nodes": 1})
    waiting = await harness.wait(
        "late", lambda job: condition(job, "Placed").get("reason") == "InsufficientGpus"
    )
    assert "1 nodes and 1 spares" in condition(waiting, "Placed")["message"]
    for index in range(2):
        harness.nodes.end(harness.namespace, f"safe-1-{index}", code=0)
    late = await harness.phase("late", "Running")
    held = status_of(late)["placement"]
    assert {held["blocks"][0]["nodes"][0], held["spares"][0]["nodes"][0]} == {n0, n2}
    watcher.stop()
    assert Replay(2).run(watcher.revisions).violations == []
