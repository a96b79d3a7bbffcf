"""Spare nodes are reserved for the job, replace failed nodes, and are released at the end."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.job_state.observation import Observed
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

pytestmark = pytest.mark.unit

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


def test_two_failed_nodes_need_two_spares() -> None:
    actions, _ = settle(lost("n0", "n1"))
    assert [b["nodes"] for b in actions.status["placement"]["blocks"]] == [["n2"], ["n3"]]
    actions, _ = settle(lost("n0", "n1", "n2", "n4"))
    assert "placement" not in actions.status, "one spare is not enough for two"
    assert reason(actions, ConditionType.RESTARTING) == ("True", "GangRestart")


def test_a_drained_node_is_replaced_and_a_crash_is_not() -> None:
    drained = failed(1, 143, reason="Terminated", disruption="EvictionByEvictionAPI")
    actions, _ = settle(lost(pods=(pod(0), drained)))
    assert [b["nodes"] for b in actions.status["placement"]["blocks"]] == [["n0"], ["n3"]]
    actions, _ = settle(lost(pods=(pod(0), failed(1, 137))))
    assert actions.status["placement"]["blocks"] == SPARED["blocks"]
    assert actions.status["placement"]["spares"] == SPARED["spares"]
