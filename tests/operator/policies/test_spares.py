"""Spare nodes are reserved for the job, replace failed nodes, and are released at the end."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api import labels
from llmtrain_core.api.conditions import ConditionType
from llmtrain_devcluster.scripted_node.node import PodScript
from llmtrain_operator.job_state.observation import Observed
from tests.support.operator_harness.harness import Bench, OperatorProcess, condition, status_of
from tests.support.operator_harness.observed import (
    failed,
    make_observed,
    node,
    pod,
    reason,
    settle,
    status,
    text,
)
from tests.support.operator_harness.queue_watch import Playback, Witness

LEAF = "network.topology.nvidia.com/leaf"
SPARED = {
    "attempt": 0,
    "gpusPerNode": 2,
    "explanation": "4 ranks on 2 nodes",
    "blocks": [{"path": "s0/l0", "nodes": ["n0"]}, {"path": "s0/l1", "nodes": ["n1"]}],
    "levels": [
        {"level": "spine", "domains": 1},
        {"level": "leaf", "domains": 2},
        {"level": "node", "domains": 2},
    ],
    "spares": [
        {"path": "s0/l0", "nodes": ["n2"]},
        {"path": "s0/l1", "nodes": ["n3"]},
        {"path": "s1/l9", "nodes": ["n4"]},
    ],
}


def lost(*names: str, **more: Any) -> Observed:
    nodes = {f"n{i}": node(f"n{i}", ready=f"n{i}" not in names) for i in range(5)}
    return make_observed(
        status(ConditionType.RUNNING, placement=SPARED),
        **{"pods": (pod(0), pod(1)), "nodes": nodes} | more,
    )


@pytest.mark.unit
def test_the_nearest_spare_gets_the_ranks_of_a_failed_node() -> None:
    actions, _ = settle(lost("n1"))
    placement = actions.status["placement"]
    assert (
        placement["attempt"] == actions.status["attempt"] == 1 and actions.status["restarts"] == 1
    )
    assert placement["blocks"] == [
        {"path": "s0/l0", "nodes": ["n0"]},
        {"path": "s0/l1", "nodes": ["n3"]},
    ], "the one in the same leaf, in the same place of the order"
    assert [use["domains"] for use in placement["levels"]] == [1, 2, 2]
    assert [block["nodes"] for block in placement["spares"]] == [["n2"], ["n4"]]
    assert actions.status["placementSummary"] == "2 nodes · 2 leaf · 1 spine · 2 spare"
    assert reason(actions, ConditionType.RESTARTING) == ("True", "NodeReplaced")
    assert text(actions, ConditionType.RESTARTING).endswith("; n3 replaces n1")
    assert reason(actions, ConditionType.PLACED)[0] == "True", "it never waits in the queue"


@pytest.mark.unit
def test_a_farther_spare_changes_the_domains_of_the_placement() -> None:
    actions, _ = settle(lost("n1", "n2", "n3"))
    placement = actions.status["placement"]
    assert [block["nodes"] for block in placement["blocks"]] == [["n0"], ["n4"]]
    assert placement["levels"][0] == {
        "level": "spine",
        "domains": 2,
        "crossings": {"tensor": 0, "data": 2},
    }
    assert "2 spine domains" in placement["explanation"]


@pytest.mark.unit
def test_two_failed_nodes_need_two_spares() -> None:
    actions, _ = settle(lost("n0", "n1"))
    assert [b["nodes"] for b in actions.status["placement"]["blocks"]] == [["n2"], ["n3"]]
    actions, _ = settle(lost("n0", "n1", "n2", "n4"))
    assert "placement" not in actions.status, "one spare is not enough for two"
    assert reason(actions, ConditionType.RESTARTING) == ("True", "GangRestart")


@pytest.mark.unit
def test_a_drained_node_is_replaced_and_a_crash_is_not() -> None:
    drained = failed(1, 143, reason="Terminated", disruption="EvictionByEvictionAPI")
    actions, _ = settle(lost(pods=(pod(0), drained)))
    assert [b["nodes"] for b in actions.status["placement"]["blocks"]] == [["n0"], ["n3"]]
    actions, _ = settle(lost(pods=(pod(0), failed(1, 137))))
    assert actions.status["placement"]["blocks"] == SPARED["blocks"]
    assert actions.status["placement"]["spares"] == SPARED["spares"]


@pytest.mark.cluster
async def test_a_spare_is_reserved_used_and_released(
    operator: OperatorProcess, bench: Bench
) -> None:
    here, there = {LEAF: "near"}, {LEAF: "far"}
    n0, n1, n2, _ = await bench.add_nodes(here, here, here, there)
    bench.nodes.default = PodScript(exit_after=None)
    witness = Witness(bench.api, bench.namespace)
    witness.start()
    await bench.submit("safe", topology={"spares": 1})
    running = await bench.runs("safe", attempt=0)
    placement = status_of(running)["placement"]
    assert [block["nodes"] for block in placement["blocks"]] == [[n0, n1]]
    assert placement["spares"] == [{"path": "near", "nodes": [n2]}], "in the same leaf"
    assert status_of(running)["placementSummary"] == "2 nodes · 1 leaf · 1 spare"
    assert len(await bench.pods()) == 2, "no pod runs on a spare"
    await bench.submit("other")
    waiting = await bench.wait(
        "other", lambda job: condition(job, "Placed").get("reason") == "InsufficientGpus"
    )
    assert "1 of 4 have them" in condition(waiting, "Placed")["message"]

    await bench.nodes.node_not_ready(n1)
    again = await bench.runs("safe", attempt=1)
    placement = status_of(again)["placement"]
    assert placement["blocks"] == [{"path": "near", "nodes": [n0, n2]}]
    assert "spares" not in placement and status_of(again)["restarts"] == 1
    where = {
        p["metadata"]["labels"][labels.NODE_INDEX]: p["spec"]["nodeName"]
        for p in await bench.pods(f"{labels.ATTEMPT}=1")
    }
    assert where == {"0": n0, "1": n2}
    assert status_of(await bench.job("other"))["phase"] == "Queued"
    await operator.shows('llmtrain_operator_recovery_seconds_count{action="ReplaceNode"} 1.0')

    await bench.nodes.node_ready(n1)
    await bench.phase("other", "Running")
    await bench.submit("late", topology={"spares": 1}, workers={"nodes": 1})
    waiting = await bench.wait(
        "late", lambda job: condition(job, "Placed").get("reason") == "InsufficientGpus"
    )
    assert "1 nodes and 1 spares" in condition(waiting, "Placed")["message"]
    for index in range(2):
        bench.nodes.end(bench.namespace, f"safe-1-{index}", code=0)
    late = await bench.phase("late", "Running")
    held = status_of(late)["placement"]
    assert {held["blocks"][0]["nodes"][0], held["spares"][0]["nodes"][0]} == {n0, n2}
    witness.stop()
    assert Playback(2).play(witness.seen).breaches == []
