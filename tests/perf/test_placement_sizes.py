"""What a placement costs in CPU time by size, on a fabric that it fills and on one that binds."""

from __future__ import annotations

import json
import time

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Placement, place
from llmtrain_core.placement.tree import tree_of
from llmtrain_core.topology.inventory import Node, node_from_raw, snapshot
from llmtrain_core.topology.label_presets import detect
from tests.support.cpu_time import quiet_median, slowness
from tests.support.placement.cases import GPU, Case
from tests.support.placement.sizes import FABRICS, node_json, sized_case

pytestmark = pytest.mark.perf

LARGE, MEDIUM = Layout(tensor=8, data=125, pipeline=8), Layout(tensor=8, data=16, pipeline=8)


def measured(case: Case) -> float:
    took = quiet_median(lambda: place(case.request, case.snapshot))
    placement = place(case.request, case.snapshot)
    assert isinstance(placement, Placement)
    print(f"\n{case.name}: {took * 1e3:.0f} ms of a core, slowdown {placement.cost.slowdown:.3f}")
    return took


@pytest.mark.parametrize("ratio", [0.1, 5.0])
@pytest.mark.parametrize("busy", [0.0, 0.4])
@pytest.mark.parametrize("fabric", sorted(FABRICS))
def test_a_job_of_a_thousand_nodes_in_a_second(fabric: str, busy: float, ratio: float) -> None:
    assert measured(sized_case(LARGE, 2000, busy, ratio, fabric)) < 1.0


@pytest.mark.parametrize("ratio", [0.1, 5.0])
@pytest.mark.parametrize("busy", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("fabric", sorted(FABRICS))
def test_a_job_of_128_nodes_in_two_tenths_of_a_second(
    fabric: str, busy: float, ratio: float
) -> None:
    """Up to 71 ms were measured on a quiet machine, 114 ms in a slow hour of its host."""
    assert measured(sized_case(MEDIUM, 1250, busy, ratio, fabric)) < 0.2


LEAVES = [(1, False), (4, False), (18, True)]
"""Nodes of a leaf, and whether NVLink joins them, besides the usual leaves of 16 nodes."""
DEEP = (
    Layout(tensor=8, context=2, data=16, pipeline=4),
    Layout(tensor=8, data=16, replicate=2, pipeline=4),
    Layout(tensor=4, data=32, pipeline=8),
)
"""Of 128 nodes in three dimensions, and with two data ranks in a node."""


@pytest.mark.parametrize("busy", [0.0, 0.4])
@pytest.mark.parametrize(("leaf", "nvlink"), LEAVES)
@pytest.mark.parametrize("fabric", sorted(FABRICS))
def test_a_thousand_nodes_in_a_second_whatever_the_leaves(
    fabric: str, leaf: int, nvlink: bool, busy: float
) -> None:
    assert measured(sized_case(LARGE, 2000, busy, 0.5, fabric, leaf, nvlink)) < 1.0


@pytest.mark.parametrize("busy", [0.0, 0.4, 0.7])
@pytest.mark.parametrize(("leaf", "nvlink"), LEAVES)
@pytest.mark.parametrize("fabric", sorted(FABRICS))
def test_128_nodes_in_two_tenths_of_a_second_whatever_the_leaves(
    fabric: str, leaf: int, nvlink: bool, busy: float
) -> None:
    """Up to 95 ms were measured on a quiet machine, 130 ms on a busy one."""
    assert measured(sized_case(MEDIUM, 1250, busy, 0.5, fabric, leaf, nvlink)) < 0.2


@pytest.mark.parametrize("layout", DEEP, ids=str)
def test_128_nodes_in_two_tenths_of_a_second_whatever_the_layout(layout: Layout) -> None:
    """Up to 93 ms were measured on a quiet machine, 105 ms in a slow hour of its host."""
    assert measured(sized_case(layout, 1250, 0.4, 0.5, "narrow")) < 0.2


def test_ten_thousand_real_nodes_are_loaded_and_indexed_in_two_seconds() -> None:
    """From the JSON text of nodes as large as real ones to the tree of domains."""
    texts = [node_json(index) for index in range(10_000)]
    print(f"\n{len(texts)} nodes of {len(texts[0]) / 1000:.1f} kB")
    nodes: list[Node] = []
    parsing = reading = 0.0
    slow = slowness()
    for text in texts:
        start = time.process_time()
        raw = json.loads(text)
        parsed = time.process_time()
        nodes.append(node_from_raw(raw))
        parsing += parsed - start
        reading += time.process_time() - parsed
    slow = (slow + slowness()) / 2
    parsing, reading = parsing / slow, reading / slow

    def index() -> None:
        levels = detect(node.labels for node in nodes)
        state = snapshot(levels, nodes, [])
        tree = tree_of(state)
        assert [level.name for level in levels] == ["core", "spine", "leaf", "node"]
        assert tree.sizes["core-0", "spine-0", "leaf-0"] == 16
        assert sum(state.free(node, GPU) for node in nodes) == 80_000

    indexing = quiet_median(index)
    print(
        f"JSON {parsing:.2f} s, nodes {reading:.2f} s, levels and tree {indexing:.2f} s of a core"
    )
    assert reading + indexing < 2.0
