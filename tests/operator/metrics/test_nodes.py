"""Nodes and GPUs by state and domain, and the largest block of free GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.topology.inventory import Node, Usage
from llmtrain_core.topology.levels import NODE, FabricLevel
from llmtrain_operator.metrics.nodes import NODE_STATES, gpus_by_node, node_figures

pytestmark = pytest.mark.unit

LEVELS = (FabricLevel("spine", "spine"), FabricLevel("leaf", "leaf"), NODE)


def node(name: str, leaf: str = "l1", gpus: int = 8, **more: Any) -> Node:
    labels = {"spine": "s1", "leaf": leaf, "kubernetes.io/hostname": name}
    return Node(name, {k: v for k, v in labels.items() if v}, {"nvidia.com/gpu": gpus}, **more)


NODES = (
    node("free"),
    node("used"),
    node("part", leaf="l2"),
    node("held", leaf="l2"),
    node("cordoned", leaf="l3", cordoned=True),
    node("draining", leaf="l3", cordoned=True),
    node("suspect", leaf="l3"),
    node("dead", leaf="l3", ready=False),
    node("cpu", gpus=0),
)
FIGURES = node_figures(
    NODES,
    LEVELS,
    used={"used": 8, "part": 2, "draining": 8, "dead": 8},
    held={"used": 8, "part": 2, "held": 8, "draining": 8, "dead": 8},
    quarantined={"suspect", "dead"},
)


def test_each_node_with_gpus_is_in_one_state() -> None:
    assert FIGURES.nodes == {
        "free": 1,
        "used": 3,
        "reserved": 1,
        "cordoned": 1,
        "quarantined": 1,
        "unready": 1,
    }


def test_each_gpu_is_in_one_state_at_each_level() -> None:
    whole = {state: FIGURES.gpus[state, "", ""] for state in NODE_STATES}
    assert whole == {
        "free": 14,
        "used": 18,
        "reserved": 8,
        "cordoned": 8,
        "quarantined": 8,
        "unready": 8,
    }
    for level in ("spine", "leaf"):
        for state, count in whole.items():
            by_domain = [n for key, n in FIGURES.gpus.items() if key[:2] == (state, level)]
            assert sum(by_domain) == count, (state, level)
    assert FIGURES.gpus["free", "leaf", "l2"] == 6
    assert FIGURES.gpus["free", "leaf", "l3"] == 0, "a full domain is told, too"
    assert ("used", "node", "used") not in FIGURES.gpus, "no series for each node"


def test_the_largest_free_block_of_each_level() -> None:
    assert FIGURES.largest_free_block == {"spine": 14, "leaf": 8, "node": 8}


def test_domains_of_one_name_below_two_spines_are_two_blocks() -> None:
    nodes = [
        Node(f"n{index}", {"spine": f"s{index}", "leaf": "l1"}, {"nvidia.com/gpu": 8})
        for index in range(2)
    ]
    figures = node_figures(nodes, LEVELS, {}, {}, ())
    assert figures.largest_free_block == {"spine": 8, "leaf": 8, "node": 8}
    assert figures.gpus["free", "leaf", "l1"] == 16, "series have the label's own value"


def test_nodes_without_a_label_are_no_block() -> None:
    figures = node_figures([node("a", leaf=""), node("b", leaf="")], LEVELS, {}, {}, ())
    assert figures.gpus["free", "leaf", ""] == 16
    assert figures.largest_free_block["leaf"] == 8
    assert node_figures([], LEVELS, {}, {}, ()).largest_free_block["leaf"] == 0


def test_more_in_use_than_there_is() -> None:
    figures = node_figures([node("shrunk", gpus=4)], LEVELS, {"shrunk": 8}, {"shrunk": 8}, ())
    assert figures.gpus["used", "", ""] == 4 and figures.gpus["free", "", ""] == 0


def test_only_whole_gpus_count() -> None:
    items = [
        Usage("a", "nvidia.com/gpu", 2),
        Usage("a", "nvidia.com/gpu", 3, "job"),
        Usage("a", "rdma/hca", 8),
        Usage("b", "nvidia.com/mig-1g.10gb", 7),
    ]
    assert gpus_by_node(items) == {"a": 5}
