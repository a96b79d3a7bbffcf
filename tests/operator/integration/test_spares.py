"""A spare node replaces a failed node, unless a waiting job got it before."""

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


async def test_a_spare_replaces_a_failed_node(
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
    await operator.shows('llmtrain_operator_recovery_seconds_count{action="ReplaceNode"} 1.0')

    await harness.submit("late", topology={"spares": 1}, workers={"nodes": 1})
    waiting = await harness.reason("late", "Placed", "InsufficientGpus")
    assert "1 nodes and 1 spares" in condition(waiting, "Placed")["message"]
    await harness.nodes.node_ready(n1)
    await harness.phase("late", "Running")
    watcher.stop()
    assert Replay(2).run(watcher.revisions).violations == []


async def test_a_waiting_job_gets_a_spare_if_no_other_node_is_free(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    n0, n1, n2, n3 = await harness.add_nodes({}, {}, {}, {})
    harness.nodes.default = PodScript(exit_after=None)
    watcher = QueueWatcher(harness.api, harness.namespace)
    watcher.start()
    await harness.submit("safe", topology={"spares": 1})
    await harness.runs("safe", attempt=0)
    one = {"workers": {"nodes": 1}}
    for name, expected in (("first", n3), ("second", n2)):
        await harness.submit(name, **one)
        placed = status_of(await harness.runs(name, attempt=0))["placement"]
        assert [block["nodes"] for block in placed["blocks"]] == [[expected]]
    safe = await harness.wait(
        "safe", lambda job: "spares" not in status_of(job).get("placement", {})
    )
    assert status_of(safe)["placementSummary"] == "2 nodes · spares: 0 of 1"
    assert condition(safe, "Placed")["message"].endswith("spares: 0 of 1")
    assert status_of(safe)["phase"] == "Running" and not status_of(safe).get("attempt")
    assert {n0, n1} == {n for b in status_of(safe)["placement"]["blocks"] for n in b["nodes"]}
    watcher.stop()
    assert Replay(2).run(watcher.revisions).violations == []
