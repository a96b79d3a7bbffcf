"""Pods carry the domain of their node at each level, as its own label names it."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.topology.inventory import Node, Snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel
from llmtrain_operator.cache.placement_status import level_labels
from llmtrain_operator.manifests.pod import make_pod
from tests.support.operator_harness.jobs import IDENTITY, NODES, checked_job

pytestmark = pytest.mark.unit


def placement(*blocks: tuple[str, list[str]], levels: tuple[str, ...]) -> dict[str, Any]:
    return {
        "blocks": [{"path": path, "nodes": nodes} for path, nodes in blocks],
        "levels": [{"level": name, "domains": 1} for name in levels],
    }


def test_each_pod_has_the_domains_of_its_node() -> None:
    found = level_labels(
        placement(("s1/l1", ["a", "b"]), ("s1/l2", ["c"]), levels=("spine", "leaf", "node"))
    )
    first = {"llmtrain.dev/level-spine": "s1", "llmtrain.dev/level-leaf": "l1"}
    assert found == [first, first, {**first, "llmtrain.dev/level-leaf": "l2"}]


def test_a_node_without_the_label_of_a_level_has_no_label_for_it() -> None:
    levels = (FabricLevel("spine", "spine"), FabricLevel("leaf", "leaf"), NODE)
    path = Snapshot(levels, ()).path(Node("a", {"spine": "s1"}, {}))
    found = level_labels(placement(("/".join(path[:-1]), ["a"]), levels=("spine", "leaf", "node")))
    assert found == [{"llmtrain.dev/level-spine": "s1"}]


def test_what_is_no_label_is_left_out() -> None:
    longest, too_long = "x" * 57, "x" * 58
    found = level_labels(
        placement(("a/b/c", ["n"]), levels=(longest, too_long, "leaf", "node")),
    )
    assert found == [{f"llmtrain.dev/level-{longest}": "a", "llmtrain.dev/level-leaf": "c"}]
    strange = placement(("\\unlabelled:n/" + "v" * 64, ["n"]), levels=("spine", "leaf", "node"))
    assert level_labels(strange) == [{}]


def test_a_flat_cluster_has_no_levels() -> None:
    assert level_labels(placement(("", ["a", "b"]), levels=("node",))) == [{}, {}]


def test_the_labels_of_a_pod() -> None:
    domains = {"llmtrain.dev/level-leaf": "l1"}
    made = make_pod(checked_job(), IDENTITY, 0, 1, NODES, domains)["metadata"]["labels"]
    plain = make_pod(checked_job(), IDENTITY, 0, 1, NODES)["metadata"]["labels"]
    assert made == {**plain, **domains}
