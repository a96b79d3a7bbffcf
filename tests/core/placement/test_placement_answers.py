"""What an answer says beyond the nodes: spares, bounds, reasons, alternatives, and what blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.api.conditions import Reason
from llmtrain_core.layout import Layout
from llmtrain_core.placement import Placement, Request, Unplaceable, place
from llmtrain_core.placement.traffic.volumes import GroupTraffic, TrafficVolumes
from llmtrain_core.topology.inventory import Node, Snapshot, Usage, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel, Levels
from tests.support.examples import examples

pytestmark = pytest.mark.unit

GPU = "nvidia.com/gpu"
LEVELS: Levels = (FabricLevel("spine", "s", 4.0), FabricLevel("leaf", "l", 2.0), NODE)
RING = TrafficVolumes({"data": GroupTraffic(10**9)})


def cluster(
    leaves: dict[str, int], used: Any = (), levels: Levels = LEVELS, **more: Any
) -> Snapshot:
    """Build nodes from `{spine/leaf: nodes}`."""
    nodes = []
    for path, count in leaves.items():
        spine, leaf = path.split("/")
        nodes += [
            Node(f"{spine}-{leaf}-{index}", {"s": spine, "l": leaf, "c": leaf}, {GPU: 8}, **more)
            for index in range(count)
        ]
    return snapshot(levels, nodes, used)


def gang(nodes: int, gpus: int = 8, **more: Any) -> Request:
    layout = more.pop("layout", Layout(data=nodes * gpus))
    return Request(layout, nodes, gpus, volumes=more.pop("volumes", RING), **more)


def placed(request: Request, state: Snapshot) -> Placement:
    answer = place(request, state)
    assert isinstance(answer, Placement), answer
    return answer


def leaf_of(answer: Placement) -> list[str]:
    return [node.path["leaf"] for node in answer.nodes]


def test_spares_sit_in_the_leaf_of_the_job() -> None:
    state = cluster({"s/a": 4, "s/b": 6})
    assert set(leaf_of(placed(gang(4), state))) == {"a"}
    answer = placed(gang(4, spares=2), state)
    assert set(leaf_of(answer)) == {"b"}
    assert [(spare.name, spare.ranks) for spare in answer.spares] == [("s-b-4", ()), ("s-b-5", ())]
    assert answer.to_wire()["spares"][0]["path"] == {"spine": "s", "leaf": "b", "node": "s-b-4"}


def test_spares_come_from_the_next_leaf_where_the_own_is_full() -> None:
    state = cluster({"s/a": 4, "s/b": 1, "t/c": 3})
    answer = placed(gang(4, spares=1), state)
    assert set(leaf_of(answer)) == {"a"}
    assert [spare.path["spine"] for spare in answer.spares] == ["s"]


def test_a_job_waits_until_its_spares_fit_too() -> None:
    state = cluster({"s/a": 4})
    answer = place(gang(4, spares=1), state)
    assert isinstance(answer, Unplaceable)
    assert "4 of 4 have them: enough for the job, 1 short for its spares" in answer.message
    within = place(gang(3, spares=1, require="leaf"), cluster({"s/a": 3, "s/b": 3}))
    assert isinstance(within, Unplaceable)
    assert within.reason == Reason.DOMAIN_TOO_SMALL
    assert (
        "has 3, 6 are free in total: enough for the job, 1 short for its spares" in within.message
    )
    short = place(gang(5, spares=1), state)
    assert isinstance(short, Unplaceable)
    assert "enough for the job" not in short.message


def test_a_preferred_level_is_kept_where_there_is_room_and_given_up_where_not() -> None:
    wide = (FabricLevel("spine", "s", 1.0), FabricLevel("leaf", "l", 8.0), NODE)
    state = cluster({"s/a": 2, "s/b": 2, "t/c": 2}, levels=wide)
    kept = placed(gang(4, prefer="spine"), state)
    assert kept.domains["spine"] == 1
    given_up = placed(gang(5, prefer="spine"), state)
    assert given_up.domains["spine"] == 2
    assert "no spine is large enough for the job (spec.topology.prefer)" in given_up.reasons


def test_a_tensor_group_of_two_nodes_stays_in_its_level() -> None:
    state = cluster({"s/a": 3, "s/b": 3})
    request = gang(4, layout=Layout(tensor=16, data=2), tensor_within="leaf")
    leaves = leaf_of(placed(request, state))
    assert leaves[0] == leaves[1]
    assert leaves[2] == leaves[3]
    too_many = gang(6, layout=Layout(tensor=16, data=3), tensor_within="leaf")
    no = place(too_many, state)
    assert isinstance(no, Unplaceable)
    assert "2 at a time in one leaf for each tensor group; 4 fit" in no.message
    assert isinstance(place(replace(too_many, tensor_within="spine"), state), Placement)


def test_a_tensor_group_spread_over_leaves_of_its_spine_takes_no_node_twice() -> None:
    thin = (FabricLevel("spine", "s", 4.0), FabricLevel("leaf", "l", 8.0), NODE)
    state = cluster({"s/a": 3, "s/b": 2, "s/c": 1, "t/d": 3, "t/e": 1}, levels=thin)
    layout = Layout(tensor=16, data=2, pipeline=2)
    volumes = TrafficVolumes(
        {
            "tensor": GroupTraffic(10**9),
            "data": GroupTraffic(10**9),
            "pipeline": GroupTraffic(10**9),
        }
    )
    request = gang(8, layout=layout, volumes=volumes, tensor_within="spine")
    answer = placed(request, state)
    assert len({node.name for node in answer.nodes}) == 8
    spines = [node.path["spine"] for node in answer.nodes]
    assert all(spines[block] == spines[block + 1] for block in range(0, 8, 2))


def test_a_small_job_takes_the_node_that_is_broken_already() -> None:
    state = cluster({"s/a": 3, "s/b": 1}, used=[Usage("s-a-1", GPU, 4)])
    assert [node.name for node in placed(gang(1, gpus=4), state).nodes] == ["s-a-1"]


def test_a_withheld_node_is_part_of_the_fabric_but_not_given_out() -> None:
    state = replace(cluster({"s/a": 2}), withheld=frozenset({"s-a-0"}))
    assert [node.name for node in placed(gang(1), state).nodes] == ["s-a-1"]
    no = place(gang(2), state)
    assert isinstance(no, Unplaceable)
    assert no.refused == {"kept for a job ahead": 1}
    assert no.blockers == ("s-a-0",)


def test_the_answer_says_what_it_costs_what_decided_and_what_else_there_was() -> None:
    state = cluster({"s/a": 3, "s/b": 3, "t/c": 3})
    volumes = TrafficVolumes({"data": GroupTraffic(10**9), "pipeline": GroupTraffic(10**8)})
    layout = Layout(tensor=8, data=2, pipeline=3)
    answer = placed(gang(6, layout=layout, volumes=volumes), state)
    wire = answer.to_wire()
    refused = place(gang(60), state).to_wire()
    assert wire.keys() <= refused.keys(), "readers find the same keys whether it fits or not"
    assert refused["cost"] is None
    assert refused["alternative"] is None
    assert set(wire["cost"]) == {"seconds", "idealSeconds", "byGroup"}
    assert answer.cost.slowdown >= 1.0
    text = " | ".join(answer.reasons)
    assert "inside spine s: no leaf has 6 free nodes, the largest has 3" in text
    assert "times that of one nearest domain; data" in text
    assert answer.alternative is not None
    assert answer.alternative.seconds >= answer.cost.seconds * (1 - 1e-6)
    assert answer.alternative.why
    assert wire["alternative"]["method"] == answer.alternative.method


def test_the_uplinks_that_hold_a_job_up_are_named() -> None:
    thin = (FabricLevel("spine", "s", 1.0), FabricLevel("leaf", "l", 16.0), NODE)
    layout = Layout(tensor=8, data=2, pipeline=2)
    volumes = TrafficVolumes({"data": GroupTraffic(10**9), "pipeline": GroupTraffic(10**9)})
    state = cluster({"s/a": 2, "s/b": 2}, levels=thin)
    answer = placed(gang(4, layout=layout, volumes=volumes), state)
    assert any("traffic is limited by the uplinks of leaf s/" in r for r in answer.reasons)


@st.composite
def crowded(draw: st.DrawFn) -> Snapshot:
    usage, nodes = [], []
    for index in range(draw(st.integers(1, 9))):
        labels = {"s": draw(st.sampled_from(["s", "t"])), "l": draw(st.sampled_from(["a", "b"]))}
        state = draw(st.sampled_from(["fine", "fine", "cordoned", "down", "small"]))
        gpus = 4 if state == "small" else 8
        nodes.append(Node(f"n{index}", labels, {GPU: gpus}, state != "down", state == "cordoned"))
        usage.append(Usage(f"n{index}", GPU, draw(st.sampled_from([0, 0, 4, 8]))))
    return snapshot(LEVELS, nodes, usage)


@st.composite
def asked(draw: st.DrawFn) -> Request:
    require, spares = draw(st.sampled_from([None, "spine", "leaf"])), draw(st.integers(0, 1))
    if draw(st.booleans()):  # tensor groups of two nodes
        groups = draw(st.integers(1, 2))
        layout = Layout(tensor=16, data=groups)
        return gang(2 * groups, require=require, spares=spares, layout=layout, tensor_within="leaf")
    return gang(draw(st.integers(1, 5)), require=require, spares=spares)


@given(crowded(), asked())
@examples(300)
def test_without_the_named_blockers_a_waiting_job_fits(state: Snapshot, request: Request) -> None:
    answer = place(request, state)
    if isinstance(answer, Placement):
        return
    named = set(answer.blockers)
    healed = tuple(
        replace(node, ready=True, cordoned=False) if node.name in named else node
        for node in state.nodes
    )
    used = {key: amount for key, amount in state.used.items() if key[0] not in named}
    after = place(request, replace(state, nodes=healed, used=used))
    assert isinstance(after, Placement) == bool(named), (answer.message, after)
    if not named:
        whole = tuple(replace(node, ready=True, cordoned=False) for node in state.nodes)
        assert isinstance(place(request, replace(state, nodes=whole, used={})), Unplaceable)
