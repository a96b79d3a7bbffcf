"""How runs of blocks are dealt out to domains."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Request
from llmtrain_core.placement.capacity import CapacityTree, build_capacity_tree, free_nodes_of
from llmtrain_core.placement.packing import STYLES, FillStyle, KeepTogether, fill
from llmtrain_core.placement.rank_orders import RankOrder
from llmtrain_core.placement.tree import tree_of
from llmtrain_core.topology.inventory import Node, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel
from tests.support.placement.cases import GPU

LEVELS = (FabricLevel("spine", "spine"), FabricLevel("leaf", "leaf", oversubscription=4), NODE)


def rooms(spines: Sequence[Sequence[int]]) -> CapacityTree:
    """Leaves with so many free nodes, by spine."""
    nodes = [
        Node(f"s{s}l{leaf}n{n}", {"spine": f"s{s}", "leaf": f"s{s}l{leaf}"}, {GPU: 8})
        for s, leaves in enumerate(spines)
        for leaf, free in enumerate(leaves)
        for n in range(free)
    ]
    request, state = Request(Layout(tensor=8, data=8), 8, 8), snapshot(LEVELS, nodes, [])
    return build_capacity_tree(free_nodes_of(request, state, state.nodes), tree_of(state), request)


def whole(cells: Sequence[int], unit: int) -> int:
    """Count the runs that are in one cell."""
    runs = [set(cells[start : start + unit]) for start in range(0, len(cells), unit)]
    return sum(len(run) == 1 for run in runs)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_node_too_few_for_a_run_is_left_alone(style: FillStyle) -> None:
    """Four leaves of three hold a pair each; the pairs of one spine do not fill its third nodes."""
    order = RankOrder("pairs", tuple(range(8)), (1, 2, 8))
    state = rooms([[3, 3, 3], [1, 3, 1]])
    assert whole(fill(state, state.root, order, style, KeepTogether.NEAR), 2) == 4
    assert whole(fill(state, state.root, order, STYLES[0], KeepTogether.NONE), 2) < 4


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_smaller_runs_get_what_larger_ones_left_of_a_cell(style: FillStyle) -> None:
    """The single nodes beside a full cell hold no pair, however many they are."""
    order = RankOrder("fours and pairs", tuple(range(8)), (1, 2, 4))
    state = rooms([[4, 1, 1, 1], [2, 2]])
    cells = fill(state, state.root, order, style, KeepTogether.NEAR)
    assert whole(cells, 2) == 4
    assert whole(cells, 4) == 1
