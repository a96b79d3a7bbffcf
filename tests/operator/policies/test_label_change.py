"""A topology label of a node changes under a running job: NetworkDegraded is set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType, get_condition
from llmtrain_core.topology.levels import NODE, FabricLevel, Levels
from llmtrain_operator.cache.records import NodeRecord
from llmtrain_operator.job_state.status_draft import Actions
from tests.support.operator_harness.observed import (
    PLACEMENT,
    make_observed,
    node,
    pod,
    reason,
    settle,
    status,
    text,
)

pytestmark = pytest.mark.unit

LEAF = "network.topology.nvidia.com/leaf"
LEVELS: Levels = (FabricLevel("leaf", LEAF), NODE)
HELD = {
    **PLACEMENT,
    "levels": [{"level": "leaf", "domains": 1}, {"level": "node", "domains": 2}],
}


def in_leaf(name: str, leaf: str | None) -> NodeRecord:
    record = node(name)
    return replace(record, node=replace(record.node, labels={LEAF: leaf} if leaf else {}))


def decide_with_leaves(
    before: dict[str, Any], levels: Levels = LEVELS, **leaves: str | None
) -> Actions:
    """Return the actions for a job with this status when its nodes have these leaf labels."""
    nodes = {name: in_leaf(name, leaf) for name, leaf in leaves.items()}
    actions, _ = settle(make_observed(before, pods=(pod(0), pod(1)), nodes=nodes, levels=levels))
    return actions


def running() -> dict[str, Any]:
    return dict(
        decide_with_leaves(
            status(ConditionType.PODS_READY, ConditionType.RUNNING, placement=HELD),
            n0="leaf-1",
            n1="leaf-1",
        ).status
    )


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        ("leaf-9", "n1 in leaf-9"),
        (None, "n1 in unlabelled:n1"),
        ("n1", "n1 in n1"),
    ],
)
def test_a_split_domain_sets_network_degraded(leaf: str | None, expected: str) -> None:
    before = running()
    assert get_condition(before["conditions"], ConditionType.NETWORK_DEGRADED) is None
    actions = decide_with_leaves(before, n0="leaf-1", n1=leaf)
    assert reason(actions, ConditionType.NETWORK_DEGRADED) == ("True", "TopologyChanged")
    assert "leaf leaf-1" in text(actions, ConditionType.NETWORK_DEGRADED)
    assert expected in text(actions, ConditionType.NETWORK_DEGRADED)
    assert actions.status["placement"] == HELD and actions.status["phase"] == "Running"
    assert not actions.create_pods and not actions.delete_pods


def test_network_degraded_is_cleared() -> None:
    apart = dict(decide_with_leaves(running(), n0="leaf-1", n1="leaf-9").status)
    back = decide_with_leaves(apart, n0="leaf-1", n1="leaf-1")
    assert reason(back, ConditionType.NETWORK_DEGRADED) == ("False", "TopologyAsPlaced")
    unplaced = {key: value for key, value in apart.items() if key != "placement"}
    assert reason(decide_with_leaves(unplaced), ConditionType.NETWORK_DEGRADED) == (
        "False",
        "NotPlaced",
    )


@pytest.mark.parametrize(
    "leaves",
    [
        {"n0": "other", "n1": "other"},
        {"n0": "leaf-1"},
    ],
)
def test_a_renamed_domain_has_no_effect(leaves: dict[str, str]) -> None:
    before = running()
    found = decide_with_leaves(before, **leaves).status["conditions"]
    assert get_condition(found, ConditionType.NETWORK_DEGRADED) is None


def test_other_levels_are_not_compared() -> None:
    apart = dict(decide_with_leaves(running(), n0="leaf-1", n1="leaf-9").status)
    rack = (FabricLevel("rack", "rack"), NODE)
    for levels in ((), rack):
        actions = decide_with_leaves(apart, levels, n0="leaf-1", n1="leaf-1")
        assert reason(actions, ConditionType.NETWORK_DEGRADED) == ("True", "TopologyChanged"), (
            "as it was reported"
        )
