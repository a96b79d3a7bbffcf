"""What a placement costs: worked by hand on small fabrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from llmtrain_core.api.fabric import Nics, NvLink
from llmtrain_core.layout import Dimension, Layout
from llmtrain_core.placement import Placement, Request, cost_of, place
from llmtrain_core.placement.traffic.graph import block_edges
from llmtrain_core.placement.traffic.volumes import GroupTraffic, TrafficVolumes, nominal_volumes
from llmtrain_core.queueing.uplink_usage import uplink_usage
from llmtrain_core.topology.inventory import Node, Snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel
from llmtrain_core.topology.links import Links

pytestmark = pytest.mark.unit

GPU = "nvidia.com/gpu"
NIC = 1e9
LINKS = Links(Nics(per_node=1, gbits_per_second=8.0), NvLink(gbytes_per_second=20.0))
MB = 10**6


def racks(count: int, size: int, thin: float, **more: object) -> Snapshot:
    levels = (FabricLevel("rack", "rack", thin), NODE)
    nodes = tuple(
        Node(f"r{rack}-n{index}", {"rack": f"r{rack}"}, {GPU: 8})
        for rack in range(count)
        for index in range(size)
    )
    return Snapshot(levels, nodes, links=LINKS, **more)  # type: ignore[arg-type]


def on(state: Snapshot, where: Sequence[int]) -> list[tuple[str, ...]]:
    """Return node paths for the racks of blocks 0, 1, ...; nodes of a rack are taken in order."""
    taken: dict[int, int] = {}
    paths = []
    for rack in where:
        paths.append((f"r{rack}", f"r{rack}-n{taken.get(rack, 0)}"))
        taken[rack] = taken.get(rack, 0) + 1
    return paths


def job(layout: Layout, gpus: int, volumes: Mapping[Dimension, int], **more: object) -> Request:
    traffic = TrafficVolumes({kind: GroupTraffic(nbytes) for kind, nbytes in volumes.items()})
    return Request(layout, layout.world_size // gpus, gpus, volumes=traffic, **more)  # type: ignore[arg-type]


def test_a_ring_crosses_the_uplink_once_twice_or_four_times() -> None:
    """Eight nodes in two racks, measured on shaped links as 28.1, 56.2 and 112.3 MB."""
    state = racks(2, 4, thin=16.0)
    ring = job(Layout(data=8), 1, {"data": 28 * MB})
    costs = [
        cost_of(ring, state, on(state, order)).seconds
        for order in ([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1], [0, 1] * 4)
    ]
    # a rack of 4 nodes has 4 NICs / 16 upwards: one crossing takes 28 MB / (NIC / 4)
    assert costs == pytest.approx([4 * 28 * MB / NIC * times for times in (1, 2, 4)])


def test_without_oversubscription_the_order_of_a_ring_does_not_matter() -> None:
    state = racks(2, 4, thin=1.0)
    ring = job(Layout(data=8), 1, {"data": 28 * MB})
    cost = cost_of(ring, state, on(state, [0, 1] * 4))
    assert cost.seconds == cost.ideal_seconds == pytest.approx(28 * MB / NIC)
    assert cost.slowdown == 1.0


def test_pipeline_across_is_cheaper_than_data_across_and_tensor_across() -> None:
    """The order that was measured: 1.8, 4.9 and 10.7 s with 64, 25 and 8 MB of payloads."""
    state = racks(2, 4, thin=5.0)
    layout = Layout(tensor=2, data=2, pipeline=2)
    request = job(layout, 1, {"tensor": 64 * MB, "data": 25 * MB, "pipeline": 4 * MB})
    across = {
        "pipeline": [0, 0, 0, 0, 1, 1, 1, 1],
        "data": [0, 0, 1, 1, 0, 0, 1, 1],
        "tensor": [0, 1] * 4,
    }
    costs = {kind: cost_of(request, state, on(state, order)) for kind, order in across.items()}
    assert costs["pipeline"].seconds < costs["data"].seconds < costs["tensor"].seconds
    found = place(request, state)
    assert isinstance(found, Placement)
    assert found.cost.seconds == pytest.approx(costs["pipeline"].seconds)


def test_a_pipeline_sends_both_ways_and_wraps_only_if_looped() -> None:
    layout = Layout(pipeline=3)
    volumes = TrafficVolumes({"pipeline": GroupTraffic(10)}, wrap_bytes=4)
    chain = {(0, 1): 10, (1, 0): 10, (1, 2): 10, (2, 1): 10}
    assert block_edges(layout, 1, TrafficVolumes({"pipeline": GroupTraffic(10)})) == {
        "pipeline": chain
    }
    looped = block_edges(layout, 1, volumes)["pipeline"]
    assert looped == {**chain, (2, 0): 4, (0, 2): 4}


def test_edges_are_added_up_by_block() -> None:
    """Two ranks of a node belong to two rings: each sends to the same next node."""
    edges = block_edges(
        Layout(tensor=2, data=3),
        2,
        TrafficVolumes({"data": GroupTraffic(5), "tensor": GroupTraffic(7)}),
    )
    assert edges["data"] == {(0, 1): 10, (1, 2): 10, (2, 0): 10}
    assert edges["tensor"] == {(block, block): 14 for block in range(3)}
    inside = block_edges(Layout(data=4), 2, TrafficVolumes({"data": GroupTraffic(5)}))["data"]
    assert inside == {(0, 0): 5, (0, 1): 5, (1, 1): 5, (1, 0): 5}


def test_context_ranks_join_the_ring_of_the_data_group() -> None:
    edges = block_edges(Layout(context=2, data=2), 1, TrafficVolumes({"data": GroupTraffic(1)}))
    assert edges["data"] == {(0, 1): 1, (1, 2): 1, (2, 3): 1, (3, 0): 1}


def test_only_what_is_exposed_counts() -> None:
    state = racks(1, 2, thin=1.0)
    half = TrafficVolumes({"data": GroupTraffic(8 * MB, 0.5)})
    cost = cost_of(Request(Layout(data=2), 2, 1, volumes=half), state, on(state, [0, 0]))
    assert cost.by_group == {"data": pytest.approx(0.5 * 8 * MB / NIC)}


def test_nvlink_domains_of_several_nodes_spare_the_nics() -> None:
    levels = (FabricLevel("rack", "rack", 4.0), FabricLevel("nvlink", "clique", nvlink=True), NODE)
    nodes = tuple(
        Node(f"n{index}", {"rack": "r", "clique": f"c{index // 2}"}, {GPU: 4}) for index in range(4)
    )
    state = Snapshot(levels, nodes, links=LINKS)
    request = job(Layout(tensor=8, data=2), 4, {"tensor": 40 * MB}, tensor_within="nvlink")
    paths = [state.path(node) for node in nodes]
    together = cost_of(request, state, paths).seconds
    torn = cost_of(request, state, [paths[0], paths[2], paths[1], paths[3]]).seconds
    assert together == pytest.approx(4 * 40 * MB / (4 * 10e9))  # NVLink of the four GPUs of a node
    assert torn == pytest.approx(40 * MB / NIC)
    found = place(request, state)
    assert isinstance(found, Placement)
    assert found.cost.seconds == pytest.approx(together)


def test_what_others_use_of_an_uplink_is_not_there() -> None:
    ring = job(Layout(data=4), 1, {"data": 28 * MB})
    free, busy = racks(2, 2, 8.0), racks(2, 2, 8.0, uplinks={("r1",): 0.5})
    order = on(free, [0, 0, 1, 1])
    assert cost_of(ring, busy, order).seconds == pytest.approx(
        2 * cost_of(ring, free, order).seconds
    )


def test_a_job_avoids_uplinks_that_others_use() -> None:
    ring = job(Layout(data=4), 1, {"data": 28 * MB})
    state = racks(3, 2, 8.0)
    names = [path[-1] for path in on(state, [0, 0, 1, 1])]
    shares = uplink_usage(ring, names, state, step_seconds=0.224)
    assert shares == {("r0",): pytest.approx(0.5), ("r1",): pytest.approx(0.5)}
    two = racks(4, 2, 8.0, uplinks=shares)
    found = place(ring, two)
    assert isinstance(found, Placement)
    assert {node.path["rack"] for node in found.nodes} == {"r2", "r3"}


def test_a_job_of_unknown_make_has_round_figures_and_says_so() -> None:
    state = racks(1, 2, 1.0)
    request = Request(Layout(tensor=8, data=2), 2, 8)
    found = place(request, state)
    assert isinstance(found, Placement)
    assert set(found.cost.by_group) == {"tensor", "data"}
    assert any("typical values" in reason for reason in found.reasons)
    assert nominal_volumes(request.layout).by_kind["data"].nbytes == 5 * 10**9
