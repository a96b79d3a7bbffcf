"""Levels, label schemes, and what raw objects say about nodes and their use."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.fabric import FabricSpec
from llmtrain_core.api.job import Toleration
from llmtrain_core.topology.inventory import (
    Node,
    Taint,
    Usage,
    node_from_raw,
    snapshot,
    tolerates,
    usage_from_pods,
)
from llmtrain_core.topology.label_presets import levels_of
from llmtrain_core.topology.levels import NODE, FabricLevel

pytestmark = pytest.mark.unit

GPU = "nvidia.com/gpu"
LEVELS = (FabricLevel("spine", "s"), FabricLevel("leaf", "l"), NODE)


def node(name: str, **labels: str) -> Node:
    return Node(name, labels, {GPU: 8})


def test_levels_that_are_spelled_out() -> None:
    fabric = FabricSpec.from_wire(
        {
            "levels": [
                {"name": "leaf", "nodeLabel": "example.com/leaf", "oversubscription": 2},
                {"name": "node", "nodeLabel": NODE.node_label},
            ]
        }
    )
    assert levels_of(fabric) == (FabricLevel("leaf", "example.com/leaf", 2.0), NODE)


@pytest.mark.parametrize(
    "levels",
    [
        [{"name": "leaf", "nodeLabel": "example.com/leaf"}],
        [{"name": "node", "nodeLabel": NODE.node_label}] * 2,
    ],
)
def test_levels_end_with_the_node_and_have_names_of_their_own(levels: list[Any]) -> None:
    with pytest.raises(ValueError, match="levels"):
        FabricSpec.from_wire({"levels": levels})


def test_use_is_added_up_and_free_is_never_negative() -> None:
    cluster = snapshot(LEVELS, [node("a")], [Usage("a", GPU, 3), Usage("a", GPU, 4)])
    assert cluster.free(cluster.nodes[0], GPU) == 1
    over = snapshot(LEVELS, [node("a")], [Usage("a", GPU, 9), Usage("gone", GPU, 1)])
    assert over.free(over.nodes[0], GPU) == 0
    assert over.free(over.nodes[0], "example.com/other") == 0


def raw_node(**changes: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "n", "labels": {"a": "b"}},
        "spec": {"taints": [], **changes.get("spec", {})},
        "status": {
            "allocatable": {"cpu": "8", "memory": "1Gi", GPU: "8", "rdma/hca": "1k"},
            "conditions": [{"type": "Ready", "status": "True"}],
            **changes.get("status", {}),
        },
    }


def test_a_node_is_read_from_its_object() -> None:
    read = node_from_raw(raw_node())
    offered = {"cpu": 8000, "memory": 2**30, GPU: 8, "rdma/hca": 1000}
    assert read == Node("n", {"a": "b"}, offered)


def test_nodes_that_take_no_pods() -> None:
    assert not node_from_raw(raw_node(status={"conditions": []})).ready
    unknown = [{"type": "Ready", "status": "Unknown"}]
    assert not node_from_raw(raw_node(status={"conditions": unknown})).ready
    assert node_from_raw(raw_node(spec={"unschedulable": True})).cordoned
    assert node_from_raw({"metadata": {"name": "bare"}}) == Node("bare", {}, {}, ready=False)


def test_soft_taints_do_not_count() -> None:
    taints = [
        {"key": "soft", "effect": "PreferNoSchedule"},
        {"key": "hard", "value": "v", "effect": "NoSchedule"},
    ]
    assert node_from_raw(raw_node(spec={"taints": taints})).taints == (
        Taint("hard", "v", "NoSchedule"),
    )


@pytest.mark.parametrize(
    ("toleration", "lifted"),
    [
        (Toleration(key="gpu", value="yes"), True),
        (Toleration(key="gpu", value="yes", effect="NoSchedule"), True),
        (Toleration(key="gpu", value="yes", effect="NoExecute"), False),
        (Toleration(key="gpu", value="no"), False),
        (Toleration(key="gpu"), False),
        (Toleration(key="gpu", operator="Exists"), True),
        (Toleration(key="other", operator="Exists"), False),
        (Toleration(operator="Exists"), True),
        (Toleration(operator="Exists", effect="NoExecute"), False),
    ],
)
def test_tolerations_are_those_of_the_scheduler(toleration: Toleration, lifted: bool) -> None:
    tainted = Node("n", {}, {}, taints=(Taint("gpu", "yes", "NoSchedule"),))
    assert tolerates(tainted, [toleration]) == lifted
    assert not tolerates(tainted, [])
    assert tolerates(Node("n", {}, {}), [])


def test_every_taint_must_be_tolerated() -> None:
    tainted = Node("n", {}, {}, taints=(Taint("a", "", "NoSchedule"), Taint("b", "", "NoExecute")))
    first = Toleration(key="a", operator="Exists")
    assert not tolerates(tainted, [first])
    assert tolerates(tainted, [first, Toleration(key="b")])


def pod(phase: str = "Running", node_name: str | None = "n", uid: str = "u1") -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "labels": {"example.com/owner": uid}},
        "spec": {
            "containers": [{"resources": {"limits": {GPU: "8"}}}],
            **({"nodeName": node_name} if node_name else {}),
        },
        "status": {"phase": phase},
    }


def test_only_bound_and_unfinished_pods_hold_anything() -> None:
    pods = [pod(), pod("Pending", uid="u2"), pod("Succeeded"), pod("Failed"), pod(node_name=None)]
    assert usage_from_pods(pods, "example.com/owner") == [
        Usage("n", GPU, 8, "u1"),
        Usage("n", "pods", 1, "u1"),
        Usage("n", GPU, 8, "u2"),
        Usage("n", "pods", 1, "u2"),
    ]
    assert Usage("n", GPU, 8, "") in usage_from_pods([{**pod(), "metadata": {"name": "p"}}])
