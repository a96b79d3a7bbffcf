"""The order of ranks decides what racks send each other: bytes counted on shaped links.

A packed order crosses an uplink with one edge of the ring per direction, an alternating one with
four (gloo's ring follows the order of ranks), so four times the bytes.

Times are printed and not asserted: they depend on who else uses the machine. Bytes are exact.
"""

from __future__ import annotations

import random
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from llmtrain_core.layout import Dimension, Layout
from llmtrain_core.placement import Placement, Request, place
from llmtrain_core.placement.cost import cost_of
from llmtrain_core.placement.traffic.volumes import GroupTraffic, TrafficVolumes
from llmtrain_core.topology.inventory import Node, Snapshot, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel
from tests.support.network.racks import NODES, NODES_PER_RACK, racks
from tests.support.network.ranks import Measured, Ranks, Work, launched

pytestmark = pytest.mark.torch

MB = 10**6
RING = 8 * MB
LEVELS = (FabricLevel("rack", "rack", oversubscription=20), NODE)
GRID = Layout(tensor=2, data=2, pipeline=2)
KINDS: tuple[Dimension, ...] = ("pipeline", "data", "tensor")
VOLUMES = {"pipeline": 1 * MB, "data": 4 * MB, "tensor": 12 * MB}
"""Bytes that a rank sends on an edge and direction in one step of the three-dimensional case."""


def cluster(seed: int = 11) -> tuple[Snapshot, dict[str, int]]:
    """Eight nodes of one GPU whose names say nothing of their rack; and the slot of every name."""
    names = [f"node-{number}" for number in range(NODES)]
    random.Random(seed).shuffle(names)
    slots = {name: slot for slot, name in enumerate(names)}
    nodes = [
        Node(name, {"rack": f"rack-{slot // NODES_PER_RACK}"}, {"nvidia.com/gpu": 1})
        for name, slot in slots.items()
    ]
    return snapshot(LEVELS, nodes, []), slots


def operators_order(request: Request) -> list[int]:
    """Slots in order of rank, as the operator places the job."""
    state, slots = cluster()
    answer = place(request, state)
    assert isinstance(answer, Placement), answer
    return [slots[node.name] for node in answer.nodes]


def all_reduce() -> Work:
    import torch
    import torch.distributed as dist

    values = torch.ones(RING // 4)
    return partial(dist.all_reduce, values)


def step() -> Work:
    """One step in three dimensions: tensor and data all-reduces in pairs, pipeline sends."""
    import torch
    import torch.distributed as dist

    rank = dist.get_rank()
    groups = {}
    for kind in ("tensor", "data"):
        for members in GRID.groups(kind):
            group = dist.new_group(members)
            if rank in members:
                groups[kind] = group
    first, last = next(pair for pair in GRID.groups("pipeline") if rank in pair)
    tensor, data = torch.ones(MB // 4), torch.ones(VOLUMES["data"] // 4)
    sent = torch.ones(VOLUMES["pipeline"] // 4)
    received = torch.empty_like(sent)

    def work() -> None:
        for _ in range(VOLUMES["tensor"] // MB):
            dist.all_reduce(tensor, group=groups["tensor"])
        if rank == first:
            dist.send(sent, last)
            dist.recv(received, last)
        else:
            dist.recv(received, first)
            dist.send(sent, first)
        dist.all_reduce(data, group=groups["data"])

    return work


def test_what_racks_send_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with racks() as made, launched(made, tmp_path) as ranks:
        report = [*_ring(ranks), *_grid(ranks)]
    with capsys.disabled():
        print("\n" + "\n".join(report))


def _ring(ranks: Ranks) -> list[str]:
    """An all-reduce over all nodes: the operator's order against others on the same nodes."""
    mine = operators_order(Request(Layout(data=NODES), NODES, 1))
    slots = cluster()[1]
    by_name = [slots[name] for name in sorted(slots)]
    alternating = [rank // 2 + NODES_PER_RACK * (rank % 2) for rank in range(NODES)]
    good = ranks.measure("operator", mine, all_reduce)
    named = ranks.measure("by name", by_name, all_reduce)
    bad = ranks.measure("alternating", alternating, all_reduce)
    # One edge leaves a rack in one direction: 2 (n - 1) / n of the payload.
    one_edge = 2 * (NODES - 1) / NODES * RING
    assert max(good.uplink_bytes) == pytest.approx(one_edge, rel=0.03)
    assert sum(named.uplink_bytes) > 1.9 * sum(good.uplink_bytes)
    ratio = sum(bad.uplink_bytes) / sum(good.uplink_bytes)
    assert ratio == pytest.approx(4.0, abs=0.1)
    return [
        f"all-reduce of {RING / MB:.0f} MB on 2 racks of 4 nodes",
        _line("operator's order", mine, good),
        _line("by node name", by_name, named),
        _line("alternating racks", alternating, bad),
        f"  bytes ratio {ratio:.2f} (4.0 +- 0.1), time ratio"
        f" {bad.seconds / good.seconds:.2f} (at least 2.5 expected on a quiet machine)",
    ]


def _grid(ranks: Ranks) -> list[str]:
    """Which dimension crosses the racks: the cost model predicts the order and the bytes."""
    volumes = TrafficVolumes({kind: GroupTraffic(VOLUMES[kind]) for kind in KINDS})
    request = Request(GRID, NODES, 1, volumes=volumes, tensor_within="rack")
    state, slots = cluster()
    path_of = {slots[node.name]: state.path(node) for node in state.nodes}
    lines = ["one step of tp2 dp2 pp2 on the same racks, by the dimension that crosses them"]
    predicted: list[float] = []
    sent: list[int] = []
    for kind in KINDS:
        order = across(kind)
        seconds = cost_of(request, state, [path_of[slot] for slot in order]).seconds
        measured = ranks.measure(kind, order, step)
        expected = len(GRID.groups(kind)) * VOLUMES[kind]
        assert max(measured.uplink_bytes) == pytest.approx(expected, rel=0.05)
        predicted.append(seconds)
        sent.append(max(measured.uplink_bytes))
        lines.append(_line(f"{kind} across", order, measured))
    assert all(near < far for near, far in pairwise(predicted)), predicted
    assert all(near < far for near, far in pairwise(sent)), sent
    mine = operators_order(request)
    assert [slot // NODES_PER_RACK for slot in mine] in _mirrored(across("pipeline"))
    return lines


def across(kind: Dimension) -> list[int]:
    """Slots in order of rank when the two members of every group of a kind sit in two racks."""
    racks_of = {rank: side for group in GRID.groups(kind) for side, rank in enumerate(group)}
    free = [list(range(NODES_PER_RACK)), list(range(NODES_PER_RACK, NODES))]
    return [free[racks_of[rank]].pop(0) for rank in range(NODES)]


def _mirrored(order: list[int]) -> list[list[int]]:
    sides = [slot // NODES_PER_RACK for slot in order]
    return [sides, [1 - side for side in sides]]


def _line(name: str, order: list[int], measured: Measured) -> str:
    shown = "".join(str(slot // NODES_PER_RACK) for slot in order)
    sent = max(measured.uplink_bytes) / MB
    return f"  {name:<20} {shown}  {sent:7.1f} MB up  {measured.seconds:6.2f} s"
