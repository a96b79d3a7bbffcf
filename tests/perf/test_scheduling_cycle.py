"""CPU time of a scheduling cycle on 5,000 nodes, by the number of resources that it counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.network import FactsCache, NetworkRequest
from llmtrain_core.placement import Request
from llmtrain_core.queueing import Allocation, ClusterState, PendingJob
from llmtrain_core.queueing.cycle import decide_within
from llmtrain_core.topology.inventory import Node, Snapshot, Usage
from llmtrain_core.topology.levels import NODE, FabricLevel

pytestmark = pytest.mark.perf

NODES, RUNNING, WAITING = 5_000, 300, 200
DEVICES = {"nvidia.com/gpu": 8, "rdma/hca": 8}
OFFERED = {"cpu": 192_000, "memory": 2**41, "ephemeral-storage": 2**42, "pods": 110}
FOREIGN = {"cpu": 4_000, "memory": 2**35, "pods": 20}
ASKED = {"cpu": 96_000, "memory": 2**40}
LEVELS = (FabricLevel("spine", "spine"), FabricLevel("leaf", "leaf"), NODE)
MAX_RATIO = 1.5
"""Measured: 1.1."""


def make_cycle(
    offered: Mapping[str, int], foreign: Mapping[str, int], asked: Mapping[str, int]
) -> Callable[[], None]:
    nodes = tuple(
        Node(f"n{i:05}", {"spine": f"s{i // 256}", "leaf": f"l{i // 16}"}, {**DEVICES, **offered})
        for i in range(NODES)
    )

    def request(count: int) -> Request:
        extra = {"rdma/hca": 8, **asked}
        return Request(Layout(tensor=8, data=count), count, 8, extra=extra)

    held = tuple(
        Allocation(
            f"r{i}",
            "ns",
            0,
            tuple(node.name for node in nodes[8 * i : 8 * i + 8]),
            request(1).needs,
            1000.0 + i if i % 2 else None,
        )
        for i in range(RUNNING)
    )
    usage = tuple(
        Usage(n, r, a, h.uid) for h in held for n in h.nodes for r, a in h.resources.items()
    )
    others = {(node.name, name): amount for node in nodes for name, amount in foreign.items()}

    def job(k: int) -> PendingJob:
        wanted = request(1 + k % 4 * 40)
        network = NetworkRequest(wanted.nodes, 8, rdma=("rdma/hca", 8))
        name = f"j{k:03}"
        return PendingJob(name, f"ns{k % 5}", name, 0, float(k), wanted, network=network)

    jobs, facts = [job(k) for k in range(WAITING)], FactsCache()

    def cycle() -> None:
        fabrics = {None: Snapshot(LEVELS, nodes)}
        state = ClusterState(0.0, fabrics, usage, held, foreign=others, facts=facts)
        decide_within(jobs, state)

    return cycle


def cpu_seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def test_five_resources_cost_little_more_than_two() -> None:
    devices, everything = make_cycle({}, {}, {}), make_cycle(OFFERED, FOREIGN, ASKED)
    measured = [(cpu_seconds(devices), cpu_seconds(everything)) for _ in range(3)]
    few, many = (min(seconds) for seconds in zip(*measured, strict=True))
    print(f"\na cycle: devices {few * 1e3:.0f} ms, all resources {many * 1e3:.0f} ms of a core")
    assert many < MAX_RATIO * few
