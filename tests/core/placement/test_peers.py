"""The restated peers do what their documents say."""

from __future__ import annotations

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Request
from llmtrain_core.topology.inventory import Node, Snapshot, Usage, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel
from tests.support.placement.baselines.kai import kai
from tests.support.placement.baselines.kueue import kueue
from tests.support.placement.baselines.volcano import volcano

pytestmark = pytest.mark.unit

GPU = "nvidia.com/gpu"
LEVELS = (FabricLevel("block", "b"), FabricLevel("rack", "r"), NODE)


def racks(shape: dict[str, dict[str, int]], busy: tuple[str, ...] = ()) -> Snapshot:
    nodes = [
        Node(f"{block}-{rack}-{index}", {"b": block, "r": rack}, {GPU: 8})
        for block, members in shape.items()
        for rack, count in members.items()
        for index in range(count)
    ]
    return snapshot(LEVELS, nodes, [Usage(name, GPU, 8) for name in busy])


def gang(nodes: int, **more: object) -> Request:
    return Request(Layout(data=nodes * 8), nodes, 8, **more)  # type: ignore[arg-type]


def used(paths: list[tuple[str, ...]] | None) -> list[str]:
    assert paths is not None
    return sorted({"/".join(path[:2]) for path in paths})


TWO_BLOCKS = {"A": {"r1": 3, "r2": 3, "r3": 3, "r4": 2}, "B": {"r1": 6, "r2": 6}}


def test_kueue_takes_the_tightest_block_though_it_has_more_racks() -> None:
    assert used(kueue(gang(10), racks(TWO_BLOCKS), "rack")) == ["A/r1", "A/r2", "A/r3", "A/r4"]


def test_kueue_pools_the_racks_of_all_chosen_blocks() -> None:
    """15 pods need both blocks; then racks by room alone: 6, 6, and the tightest for the rest."""
    state = racks(TWO_BLOCKS)
    assert used(kueue(gang(15), state, "rack")) == ["A/r1", "B/r1", "B/r2"]
    assert used(kueue(gang(14), state, "rack")) == ["A/r4", "B/r1", "B/r2"]


def test_kueue_orders_nodes_as_strings() -> None:
    paths = kueue(gang(12), racks({"A": {"r1": 12}}), "rack")
    assert paths is not None
    assert [path[-1] for path in paths[:4]] == ["A-r1-0", "A-r1-1", "A-r1-10", "A-r1-11"]


def test_kueue_fails_where_the_required_level_is_too_small() -> None:
    state = racks(TWO_BLOCKS)
    assert kueue(gang(7, require="rack"), state, "rack") is None
    assert used(kueue(gang(11, require="block"), state, "rack")) == [
        "A/r1",
        "A/r2",
        "A/r3",
        "A/r4",
    ]
    assert kueue(gang(24), state, "rack") is None


def test_volcano_takes_the_fullest_hypernode_of_the_lowest_tier() -> None:
    state = racks({"A": {"r1": 4, "r2": 4}}, busy=("A-r2-0", "A-r2-1"))
    assert used(volcano(gang(2), state)) == ["A/r2"]
    assert used(volcano(gang(3), state)) == ["A/r1"]
    assert volcano(gang(5, require="rack"), state) is None


def test_volcano_soft_mode_can_start_in_the_wrong_rack() -> None:
    """The first task goes to the fullest rack, and the rest follow wherever there is room."""
    state = racks({"A": {"r1": 4, "r2": 4}}, busy=("A-r2-0", "A-r2-1"))
    assert used(volcano(gang(4), state, hard=False)) == ["A/r1", "A/r2"]
    assert used(volcano(gang(4), state)) == ["A/r1"]


def test_volcano_keeps_to_the_rack_it_started_in() -> None:
    paths = volcano(gang(5), racks({"A": {"r1": 2, "r2": 4}}))
    assert paths is not None
    assert [path[1] for path in paths] == ["r1", "r1", "r2", "r2", "r2"]


def test_kai_takes_the_fullest_domain_and_fills_its_emptiest_rack_first() -> None:
    state = racks(TWO_BLOCKS)
    paths = kai(gang(10), state, "rack")
    assert used(paths) == ["A/r1", "A/r2", "A/r3", "A/r4"]
    assert paths is not None
    assert [path[1] for path in paths[:3]] == ["r3", "r3", "r3"]
    assert used(kai(gang(2), state, "rack")) == ["A/r4"]
    assert used(kai(gang(20), state, "rack"))[-2:] == ["B/r1", "B/r2"]


def test_kai_fails_where_the_required_level_is_too_small() -> None:
    assert kai(gang(7, require="rack"), racks(TWO_BLOCKS), "rack") is None
    assert kai(gang(13, require="block"), racks(TWO_BLOCKS), "rack") is None
