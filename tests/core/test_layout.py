"""Rank layout: the classic 16-GPU case as published, and what holds for every layout."""

from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain_core.layout import DIMENSIONS, GroupKind, Layout

pytestmark = pytest.mark.unit

SIXTEEN = Layout(tensor=2, data=2, pipeline=4)
KINDS: tuple[GroupKind, ...] = (*DIMENSIONS, "model")

LAYOUTS = st.builds(Layout, **{d: st.integers(1, 4) for d in DIMENSIONS})


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("tensor", [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13], [14, 15]]),
        ("data", [[0, 2], [1, 3], [4, 6], [5, 7], [8, 10], [9, 11], [12, 14], [13, 15]]),
        ("pipeline", [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]),
        ("model", [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]),
        ("context", [[rank] for rank in range(16)]),
        ("replicate", [[rank] for rank in range(16)]),
    ],
)
def test_the_groups_of_sixteen_gpus(kind: GroupKind, groups: list[list[int]]) -> None:
    assert SIXTEEN.groups(kind) == groups


def test_the_formula_of_the_design() -> None:
    t, c, d, r, p = 2, 3, 4, 5, 6
    layout = Layout(tensor=t, context=c, data=d, replicate=r, pipeline=p)
    tp, cp, dp, rep, pp = 1, 2, 3, 4, 5
    assert layout.rank(tensor=tp, context=cp, data=dp, replicate=rep, pipeline=pp) == tp + t * (
        cp + c * (dp + d * (rep + r * pp))
    )
    assert layout.world_size == 720


@given(LAYOUTS)
@settings(max_examples=50)
def test_ranks_and_coordinates_are_a_bijection(layout: Layout) -> None:
    seen = set()
    for rank in range(layout.world_size):
        coordinates = layout.coordinates(rank)
        assert layout.rank(**coordinates) == rank
        assert all(0 <= coordinates[d] < layout.degree(d) for d in DIMENSIONS)
        seen.add(tuple(coordinates[d] for d in DIMENSIONS))
    assert len(seen) == layout.world_size == prod(layout.degree(d) for d in DIMENSIONS)


@given(LAYOUTS, st.sampled_from(KINDS))
@settings(max_examples=100)
def test_groups_partition_the_world(layout: Layout, kind: GroupKind) -> None:
    own = {"model": {"tensor", "pipeline"}, "data": {"context", "data"}}.get(kind, {kind})
    groups = layout.groups(kind)
    assert sorted(rank for group in groups for rank in group) == list(range(layout.world_size))
    assert {len(g) for g in groups} == {prod(layout.degree(d) for d in DIMENSIONS if d in own)}
    assert groups == sorted(groups)
    for group in groups:
        assert group == sorted(group)
        fixed = {
            tuple(layout.coordinates(rank)[d] for d in DIMENSIONS if d not in own) for rank in group
        }
        assert len(fixed) == 1


@given(LAYOUTS)
@settings(max_examples=50)
def test_a_tensor_group_is_a_run_of_neighbours(layout: Layout) -> None:
    for group in layout.groups("tensor"):
        assert group == list(range(group[0], group[0] + layout.tensor))


def test_what_is_outside_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="pipeline: 0 is not a parallel degree; use 1 or more"):
        Layout(pipeline=0)
    with pytest.raises(ValueError, match=r"data: 2 is outside 0\.\.1"):
        SIXTEEN.rank(data=2)
    with pytest.raises(ValueError, match=r"data: -1 is outside"):
        SIXTEEN.rank(data=-1)
    for rank in (-1, 16):
        with pytest.raises(ValueError, match=rf"rank {rank} is outside 0\.\.15"):
            SIXTEEN.coordinates(rank)


@pytest.mark.parametrize(
    ("layout", "column"),
    [
        (Layout(tensor=8, pipeline=4, data=16), "tp8·pp4·dp16"),
        (Layout(tensor=8, context=2, pipeline=4, data=16, replicate=2), "tp8·cp2·pp4·dp16·rep2"),
        (Layout(), "dp1"),
    ],
)
def test_the_layout_column(layout: Layout, column: str) -> None:
    assert str(layout) == column


def test_experts_are_dealt_out_over_neighbours_among_data_and_context_ranks() -> None:
    grid = Layout(tensor=2, context=2, data=2, pipeline=2, expert=4)
    assert grid.groups("expert") == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]]
    assert str(grid) == "tp2·cp2·pp2·dp2·ep4"
    assert Layout(data=4, replicate=2, expert=2).groups("expert") == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]
