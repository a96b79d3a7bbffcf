"""Gang placement: all or nothing, near together, and never more than there is."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.job import Toleration
from llmtrain_core.layout import Layout
from llmtrain_core.placement import Placement, Request, Unplaceable, device_tolerations, place
from llmtrain_core.topology.inventory import Node, Snapshot, Taint, Usage, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel
from llmtrain_core.validation.check import Job, check
from tests.support.examples import examples

pytestmark = pytest.mark.unit

GPU = "nvidia.com/gpu"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
LEVELS = (FabricLevel("spine", "s"), FabricLevel("leaf", "l"), NODE)


def cluster(shape: dict[str, dict[str, int]], gpus: int = 8, used: Any = ()) -> Snapshot:
    """Build nodes from `{spine: {leaf: nodes}}`; they are named in the order of the shape."""
    nodes = []
    for spine, leaves in shape.items():
        for leaf, count in leaves.items():
            nodes += [
                Node(f"{spine}-{leaf}-{index}", {"s": spine, "l": leaf}, {GPU: gpus})
                for index in range(count)
            ]
    return snapshot(LEVELS, nodes, used)


def gang(nodes: int, gpus: int = 8, **more: Any) -> Request:
    layout = more.pop("layout", Layout(data=nodes * gpus))
    return Request(layout, nodes, gpus, **more)


def placed(request: Request, state: Snapshot) -> Placement:
    answer = place(request, state)
    assert isinstance(answer, Placement), answer
    return answer


def refused(request: Request, state: Snapshot) -> Unplaceable:
    answer = place(request, state)
    assert isinstance(answer, Unplaceable), answer
    return answer


def names(answer: Placement) -> list[str]:
    return [node.name for node in answer.nodes]


def test_the_tightest_leaf_that_holds_the_gang_wins() -> None:
    state = cluster({"s1": {"a": 4, "b": 2, "c": 3}})
    assert names(placed(gang(2), state)) == ["s1-b-0", "s1-b-1"]
    assert names(placed(gang(3), state)) == ["s1-c-0", "s1-c-1", "s1-c-2"]


def test_a_gang_too_large_for_a_leaf_stays_under_one_spine() -> None:
    state = cluster({"s1": {"a": 3}, "s2": {"b": 3}, "s3": {"c": 2, "d": 2}})
    answer = placed(gang(4), state)
    assert answer.domains == {"spine": 1, "leaf": 2, "node": 4}
    assert names(answer) == ["s3-c-0", "s3-c-1", "s3-d-0", "s3-d-1"]


def test_as_few_leaves_as_possible() -> None:
    state = cluster({"s1": {"a": 1, "b": 1, "c": 4, "d": 2}})
    assert placed(gang(6), state).domains["leaf"] == 2
    assert names(placed(gang(5), state)) == ["s1-a-0", "s1-c-0", "s1-c-1", "s1-c-2", "s1-c-3"]


def test_nodes_come_in_natural_order() -> None:
    state = cluster({"s1": {"a": 12}})
    assert names(placed(gang(12), state)) == [f"s1-a-{index}" for index in range(12)]


def test_what_is_in_use_does_not_count() -> None:
    state = cluster({"s1": {"a": 2, "b": 3}}, used=[Usage("s1-a-0", GPU, 1)])
    assert names(placed(gang(2), state))[0].startswith("s1-b")
    assert names(placed(gang(1, gpus=7), state)) == ["s1-a-0"]


def test_ranks_and_paths() -> None:
    answer = placed(gang(2, layout=Layout(tensor=8, pipeline=2)), cluster({"s1": {"a": 2}}))
    assert [node.ranks for node in answer.nodes] == [tuple(range(8)), tuple(range(8, 16))]
    assert answer.nodes[0].path == {"spine": "s1", "leaf": "a", "node": "s1-a-0"}
    assert answer.crossings == {
        "spine": {"tensor": 0, "pipeline": 0},
        "leaf": {"tensor": 0, "pipeline": 0},
        "node": {"tensor": 0, "pipeline": 8},
    }
    assert "2 nodes, 1 leaf domain, 1 spine domain" in answer.explanation
    wire = answer.to_wire()
    assert wire["fits"] is True
    assert wire["nodes"][1]["ranks"] == list(range(8, 16))


def test_crossings_count_groups_that_span_domains() -> None:
    layout = Layout(tensor=2, data=2, pipeline=4)
    answer = placed(gang(4, gpus=4, layout=layout), cluster({"s": {"a": 2, "b": 2}}, gpus=4))
    assert answer.crossings["leaf"] == {"tensor": 0, "data": 0, "pipeline": 4}
    assert answer.crossings["node"] == {"tensor": 0, "data": 0, "pipeline": 4}
    assert "groups across leaf domains: 4 pipeline" in answer.explanation


def test_requirements_are_kept() -> None:
    state = cluster({"s1": {"a": 2, "b": 2}, "s2": {"c": 3}})
    assert placed(gang(4, require="spine"), state).domains["spine"] == 1
    no = refused(gang(4, require="leaf"), state)
    assert no.reason == Reason.DOMAIN_TOO_SMALL
    assert "the leaf with the most free nodes has 3, 7 are free in total" in no.message
    no = refused(gang(2, require="node"), state)
    assert "the node with the most free nodes has 1" in no.message


@pytest.mark.parametrize("field", ["require", "prefer"])
def test_an_unknown_level_lists_the_known_ones(field: str) -> None:
    no = refused(gang(1, **{field: "rack"}), cluster({"s1": {"a": 1}}))
    assert no.reason == Reason.UNKNOWN_LEVEL
    assert no.message.startswith(f"spec.topology.{field}: ")
    assert no.message.endswith("use one of spine, leaf, node")


def one(**changes: Any) -> Snapshot:
    fields = {"labels": {"s": "1", "l": "1", "pool": "a"}, "allocatable": {GPU: 8}, **changes}
    return snapshot(LEVELS, [Node("n", **fields)], [])


@pytest.mark.parametrize(
    ("state", "request_", "why"),
    [
        (one(), gang(1, node_selector={"pool": "b"}), "node selector does not match"),
        (one(), gang(1, excluded=frozenset({"n"})), "excluded by the job"),
        (
            one(),
            gang(1, excluded=frozenset({"n"}), too_small=frozenset({"n"})),
            "GPU memory too small",
        ),
        (one(ready=False), gang(1), "not ready"),
        (
            one(ready=False, taints=(Taint("node.kubernetes.io/not-ready", "", "NoExecute"),)),
            gang(1),
            "not ready",
        ),
        (
            one(cordoned=True, taints=(Taint(UNSCHEDULABLE, "", "NoSchedule"),)),
            gang(1),
            "cordoned",
        ),
        (one(taints=(Taint("a", "", "NoSchedule"),)), gang(1), "taint not tolerated"),
        (one(allocatable={GPU: 4}), gang(1), f"has fewer than 8 {GPU}"),
        (one(), gang(1, extra={"rdma/hca": 1}), "has fewer than 1 rdma/hca"),
    ],
)
def test_why_a_node_is_left_out(state: Snapshot, request_: Request, why: str) -> None:
    no = refused(request_, state)
    assert no.reason == Reason.NO_MATCHING_NODES
    assert no.refused == {why: 1}
    assert f"left out: 1 {why}" in no.message


def test_tolerations_and_selectors_let_a_node_in() -> None:
    state = one(taints=(Taint("a", "", "NoSchedule"),))
    lifted = (Toleration(key="a", operator="Exists"),)
    assert names(placed(gang(1, tolerations=lifted, node_selector={"pool": "a"}), state)) == ["n"]


def test_a_gang_that_waits_says_what_is_short_and_where() -> None:
    state = cluster({"s1": {"a": 2, "b": 2}}, used=[Usage("s1-a-0", GPU, 8)])
    no = refused(gang(4), state)
    assert no.reason == Reason.INSUFFICIENT_GPUS
    assert no.free_nodes == {"spine": {"s1": 3}, "leaf": {"s1/a": 1, "s1/b": 2}}
    assert no.refused == {f"{GPU} in use": 1}
    assert no.message == (
        f"needs 4 nodes with 8 {GPU} free; 3 of 4 have them;"
        f" it fits when these nodes become available: s1-a-0 ({GPU} in use);"
        f" free by spine: s1=3, by leaf: b=2 a=1; left out: 1 {GPU} in use"
    )
    assert no.to_wire()["fits"] is False


def test_gpus_are_short_only_where_nothing_but_pods_is_in_the_way() -> None:
    """On a node of another pool they are in use as well, but their end would not help."""
    labels = {"s": "1", "l": "1"}
    nodes = [Node(name, {**labels, "pool": name}, {GPU: 8}) for name in ("a", "b")]
    state = snapshot(LEVELS, nodes, [Usage("b", GPU, 8)])
    no = refused(gang(2, node_selector={"pool": "a"}), state)
    assert no.reason == Reason.INSUFFICIENT_NODES
    assert f"b (node selector does not match and {GPU} in use)" in no.message
    assert refused(gang(2), state).reason == Reason.INSUFFICIENT_GPUS


def test_a_gang_larger_than_the_cluster_never_fits() -> None:
    assert refused(gang(5), cluster({"s1": {"a": 4}})).reason == Reason.INSUFFICIENT_NODES


def test_an_empty_cluster() -> None:
    assert refused(gang(1), snapshot(LEVELS, [], [])).reason == Reason.NO_MATCHING_NODES


def test_the_request_of_a_job() -> None:
    checked = check(
        "job",
        {
            "workers": {
                "nodes": 2,
                "gpusPerNode": 4,
                "image": "x",
                "command": ["x"],
                "gpuResource": "amd.com/gpu",
                "nodeSelector": {"pool": "a"},
                "tolerations": [{"operator": "Exists"}],
                "resources": {"limits": {"example.com/nic": 2, "cpu": 4}},
            },
            "parallelism": {"tensor": 4},
            "topology": {"require": "leaf", "excludeNodes": ["bad"]},
            "network": {"rdma": {"resource": "rdma/hca", "count": 3}},
        },
    )
    assert isinstance(checked, Job), checked
    assert Request.of(checked) == Request(
        Layout(tensor=4, data=2),
        2,
        4,
        "amd.com/gpu",
        extra={"example.com/nic": 2, "cpu": 4000, "memory": 2**30, "rdma/hca": 3},
        require="leaf",
        node_selector={"pool": "a"},
        tolerations=(
            Toleration(operator="Exists"),
            *device_tolerations(["amd.com/gpu", "example.com/nic", "rdma/hca"]),
        ),
        excluded=frozenset({"bad"}),
    )


@st.composite
def states(draw: st.DrawFn) -> Snapshot:
    nodes, usage = [], []
    for index in range(draw(st.integers(0, 9))):
        name = f"n{index}"
        # Two spines share leaf names, and some nodes lack a label.
        labels = {
            key: value
            for key, value in (
                ("s", draw(st.sampled_from(["s1", "s2"]))),
                ("l", draw(st.sampled_from(["l1", "l2", ""]))),
            )
            if value
        }
        nodes.append(
            Node(
                name,
                labels,
                {GPU: draw(st.sampled_from([2, 4]))},
                ready=draw(st.integers(0, 9)) > 0,
            )
        )
        usage.append(Usage(name, GPU, draw(st.integers(0, 4))))
    return snapshot(LEVELS, nodes, usage)


requests = st.builds(
    lambda nodes, gpus, tensor, require: Request(
        Layout(tensor=tensor, data=nodes * gpus // tensor), nodes, gpus, require=require
    ),
    st.integers(1, 4),
    st.sampled_from([2, 4]),
    st.sampled_from([1, 2]),
    st.sampled_from([None, "spine", "leaf"]),
)


def fits_by_brute_force(request: Request, state: Snapshot) -> bool:
    able = [
        node
        for node in state.nodes
        if node.ready and state.free(node, GPU) >= request.gpus_per_node
    ]
    depth = {None: 0, "spine": 1, "leaf": 2}[request.require]
    return any(
        len({state.path(node)[:depth] for node in chosen}) == 1
        for chosen in combinations(able, request.nodes)
    )


@given(states(), requests)
@examples(300)
def test_what_holds_for_every_answer(state: Snapshot, request: Request) -> None:
    answer = place(request, state)
    assert isinstance(answer, Placement) == fits_by_brute_force(request, state)
    if isinstance(answer, Unplaceable):
        assert answer.message
        return
    chosen = Counter(names(answer))
    by_name = {node.name: node for node in state.nodes}
    assert len(chosen) == request.nodes
    for name, count in chosen.items():
        assert count * request.gpus_per_node <= state.free(by_name[name], GPU)
    ranks = [rank for node in answer.nodes for rank in node.ranks]
    assert sorted(ranks) == list(range(request.layout.world_size))
    node_of = {rank: node.name for node in answer.nodes for rank in node.ranks}
    for group in request.layout.groups("tensor"):
        assert len({node_of[rank] for rank in group}) == 1
    if request.require is not None:
        assert answer.domains[request.require] == 1


@given(states(), requests, st.randoms(use_true_random=False))
@examples(150)
def test_the_order_of_nodes_does_not_matter(
    state: Snapshot, request: Request, rng: random.Random
) -> None:
    nodes = list(state.nodes)
    rng.shuffle(nodes)
    shuffled = Snapshot(state.levels, tuple(nodes), dict(reversed(list(state.used.items()))))
    assert place(request, shuffled) == place(request, state)


def test_names_that_count_alike_are_told_apart() -> None:
    """`n1` and `n01` are the same number: the choice between them must not be by accident."""
    nodes = tuple(Node(name, {}, {GPU: 8}) for name in ("n1", "n01"))
    request = gang(1)
    assert place(request, Snapshot((NODE,), nodes)) == place(
        request, Snapshot((NODE,), nodes[::-1])
    )
