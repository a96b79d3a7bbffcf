"""Odd labels and the placement: the answer is right on the tree that the labels make."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from llmtrain_core.api.conditions import Reason
from llmtrain_core.layout import Layout
from llmtrain_core.placement import Placement, Request, Unplaceable, place
from llmtrain_core.topology.inventory import Node, Snapshot, snapshot
from llmtrain_core.topology.label_presets import detect
from llmtrain_core.topology.levels import NODE, FabricLevel

pytestmark = pytest.mark.unit

GPU = "nvidia.com/gpu"
CLIQUE = "nvidia.com/gpu.clique"
LEAF = "network.topology.nvidia.com/leaf"
LEVELS = (FabricLevel("spine", "s"), FabricLevel("leaf", "l"), NODE)


def node(name: str, gpus: int = 8, **labels: str) -> Node:
    return Node(name, labels, {GPU: gpus})


def gang(nodes: int, gpus: int = 8, **more: Any) -> Request:
    layout = more.pop("layout", Layout(tensor=gpus, data=nodes))
    return Request(layout, nodes, gpus, **more)


def placed(request: Request, state: Snapshot) -> Placement:
    answer = place(request, state)
    assert isinstance(answer, Placement), answer
    assert sorted(r for n in answer.nodes for r in n.ranks) == list(
        range(request.layout.world_size)
    )
    return answer


def test_the_same_rack_name_under_two_spines_is_two_racks() -> None:
    nodes = [node(f"a{i}", s="1", l="rack") for i in range(2)]
    nodes += [node(f"b{i}", s="2", l="rack") for i in range(3)]
    state = snapshot(LEVELS, nodes, [])
    near = placed(gang(3, require="leaf"), state)
    assert {n.name for n in near.nodes} == {"b0", "b1", "b2"}
    wide = placed(gang(5), state)
    assert wide.domains == {"spine": 2, "leaf": 2, "node": 5}
    assert wide.crossings["leaf"]["data"] == wide.crossings["spine"]["data"] == 8
    assert isinstance(place(gang(4, require="leaf"), state), Unplaceable)


def test_a_host_called_like_a_rack_confuses_nobody() -> None:
    nodes = [node("r1", s="r1", l="r1"), node("r2", s="r1", l="r1"), node("r3", s="r1", l="r2")]
    answer = placed(gang(2, require="leaf"), snapshot(LEVELS, nodes, []))
    assert [n.name for n in answer.nodes] == ["r1", "r2"]
    assert dict(answer.nodes[0].path) == {"spine": "r1", "leaf": "r1", "node": "r1"}


@pytest.mark.parametrize("labels", [{"s": "1"}, {"s": "1", "l": ""}])
def test_unlabelled_nodes_are_never_taken_for_neighbours(labels: dict[str, str]) -> None:
    state = snapshot(LEVELS, [node("a", **labels), node("b", **labels)], [])
    refused = place(gang(2, require="leaf"), state)
    assert isinstance(refused, Unplaceable) and refused.reason == Reason.DOMAIN_TOO_SMALL
    assert placed(gang(2), state).domains == {"spine": 1, "leaf": 2, "node": 2}
    labelled = [node("c", s="1", l="x"), node("d", s="1", l="x")]
    mixed = snapshot(LEVELS, [*state.nodes, *labelled], [])
    assert {n.name for n in placed(gang(2), mixed).nodes} == {"c", "d"}


def test_unicode_and_long_names() -> None:
    leaves = ["機架-10", "機架-2", "é" * 300, "٣", "²"]
    nodes = [node(f"{leaf}/{i}", s="σ", l=leaf) for leaf in leaves for i in range(2)]
    answer = placed(gang(10), snapshot(LEVELS, nodes, []))
    assert answer.domains == {"spine": 1, "leaf": 5, "node": 10}
    order = [n.path["leaf"] for n in answer.nodes]
    assert all(order[i] == order[i + 1] for i in range(0, 10, 2)), "leaves stay together"


def test_a_leaf_of_300_nodes() -> None:
    nodes = [node(f"a{i}", s="1", l=f"small-{i // 4}") for i in range(300)]
    nodes += [node(f"b{i}", s="1", l="wide") for i in range(300)]
    answer = placed(gang(300), snapshot(LEVELS, nodes, []))
    assert answer.domains == {"spine": 1, "leaf": 1, "node": 300}
    assert [n.name for n in answer.nodes] == [f"b{i}" for i in range(300)], "natural order"


def test_300_leaves_under_one_spine() -> None:
    nodes = [node(f"n{i}-{k}", s="1", l=f"leaf-{i}") for i in range(300) for k in range(2)]
    answer = placed(gang(600), snapshot(LEVELS, nodes, []))
    assert answer.domains == {"spine": 1, "leaf": 300, "node": 600}
    order = [n.path["leaf"] for n in answer.nodes]
    assert sum(a != b for a, b in pairwise(order)) == 299


def nvl72(racks: int, per_rack: int, leaf_of: Any) -> Snapshot:
    nodes = [
        Node(f"r{rack}-{i}", {LEAF: leaf_of(rack, i), CLIQUE: f"uuid-{rack}.1"}, {GPU: 4})
        for rack in range(racks)
        for i in range(per_rack)
    ]
    return snapshot(detect(n.labels for n in nodes), nodes, [])


def tensor_domains(answer: Placement, layout: Layout) -> list[set[tuple[str, ...]]]:
    """Leaf and NVLink domain of the ranks of every tensor group."""
    where = {rank: tuple(n.path.values())[:-1] for n in answer.nodes for rank in n.ranks}
    return [{where[rank] for rank in group} for group in layout.groups("tensor")]


def test_tensor_groups_of_several_nodes_stay_in_an_nvlink_domain() -> None:
    state = nvl72(4, 5, lambda rack, i: f"leaf-{rack // 2}")
    layout = Layout(tensor=8, data=8)
    answer = placed(gang(16, 4, layout=layout, tensor_within="nvlink"), state)
    assert [*answer.domains] == ["leaf", "nvlink", "node"]
    assert all(len(domains) == 1 for domains in tensor_domains(answer, layout))
    # 5 nodes a rack hold two groups of two nodes each: the fifth stays free.
    too_many = place(gang(18, 4, layout=Layout(tensor=8, data=9), tensor_within="nvlink"), state)
    assert isinstance(too_many, Unplaceable)


def test_a_clique_across_two_leaves_holds_no_tensor_group_across_them() -> None:
    state = nvl72(1, 4, lambda rack, i: f"leaf-{i // 2}")
    layout = Layout(tensor=8, data=2)
    answer = placed(gang(4, 4, layout=layout, tensor_within="nvlink"), state)
    assert all(len(domains) == 1 for domains in tensor_domains(answer, layout))
    whole = Layout(tensor=16)
    assert isinstance(place(gang(4, 4, layout=whole, tensor_within="nvlink"), state), Unplaceable)
