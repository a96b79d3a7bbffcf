"""Jobs that a domain bounds: tensor groups of several leaf domains, and a required level."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Placement, Request, place
from llmtrain_core.placement.traffic.volumes import GroupTraffic, TrafficVolumes
from llmtrain_core.topology.inventory import Node, Snapshot, Usage, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel
from tests.support.examples import examples
from tests.support.placement.cases import GPU, MB
from tests.support.placement.constraints import keeps_constraints

pytestmark = [pytest.mark.unit, pytest.mark.timeout(900)]

LEVELS = ("pod", "spine", "leaf")
Tree = Sequence[Sequence[Sequence[int]]]
"""The free nodes of each leaf, by pod and spine."""
LEAF_NODES = 4
"""The nodes of each leaf: those that are not free are in use."""
TRAFFIC = TrafficVolumes({"data": GroupTraffic(2000 * MB), "pipeline": GroupTraffic(200 * MB)})


def fabric(free: Tree, rates: Sequence[float] = (1.0, 1.0, 1.0)) -> Snapshot:
    """Build the fabric of a tree, with such an oversubscription of each level."""
    levels = [FabricLevel(name, name, rate) for name, rate in zip(LEVELS, rates, strict=True)]
    nodes, used = [], []
    for p, pod in enumerate(free):
        for s, spine in enumerate(pod):
            for leaf, count in enumerate(spine):
                labels = {"pod": f"p{p}", "spine": f"s{s}", "leaf": f"l{leaf}"}
                names = [f"{''.join(labels.values())}n{index}" for index in range(LEAF_NODES)]
                nodes += [Node(name, labels, {GPU: 8}) for name in names]
                used += [Usage(name, GPU, 8) for name in names[count:]]
    return snapshot((*levels, NODE), nodes, used)


def test_a_tensor_group_may_use_several_leaves() -> None:
    """The second pod holds a tensor group of two nodes, no leaf or spine of it does."""
    state = fabric([[[3]], [[1], [1]]])
    request = Request(Layout(tensor=16, data=2), 4, 8, tensor_within="pod")
    answer = place(request, state)
    assert isinstance(answer, Placement)
    keeps_constraints(request, state, answer)
    assert answer.domains == {"pod": 2, "spine": 3, "leaf": 3, "node": 4}


def random_case(seed: int) -> tuple[Request, Snapshot]:
    """Draw a fabric of up to 54 free nodes, and a job whose tensor groups take two or four."""
    rng = random.Random(seed)
    tree = [
        [[rng.randint(0, 3) for _ in range(rng.randint(1, 3))] for _ in range(spines)]
        for spines in (rng.randint(1, 3), rng.randint(1, 3))
    ]
    layout = Layout(tensor=rng.choice((16, 16, 32)), data=rng.randint(2, 6))
    request = Request(
        layout,
        layout.world_size // 8,
        8,
        tensor_within=rng.choice(("pod", "pod", "pod", "spine")),
        require=rng.choice((None, None, None, "pod")),
        spares=rng.choice((0, 0, 0, 1)),
        domain_tolerance=rng.choice((0.0, 0.01, 0.05)),
    )
    return request, fabric(tree, [rng.choice((1.0, 1.0, 2.0)) for _ in LEVELS])


@given(st.integers(0, 10_000))
@example(13)
@example(26)
@example(147)
@examples(300)
def test_wide_tensor_groups_keep_all_constraints(seed: int) -> None:
    request, state = random_case(seed)
    answer = place(request, state)
    event(type(answer).__name__)
    if isinstance(answer, Placement):
        keeps_constraints(request, state, answer)


@pytest.mark.parametrize(
    ("free", "volumes"),
    [
        ([[4, 4], [4, 1, 3], [1, 0]], TRAFFIC),
        ([[1, 1, 1, 1], [0, 1], [2, 0, 3, 3]], TRAFFIC),
        ([[1, 1, 1, 1], [0, 1], [2, 0, 3, 3]], None),
        ([[2, 4], [4, 1, 0], [1, 3, 4]], TRAFFIC),
    ],
)
def test_no_gain_takes_a_job_out_of_the_domain_that_it_requires(
    free: Sequence[Sequence[int]], volumes: TrafficVolumes | None
) -> None:
    """Without the demand it would be faster on more leaves, whose uplinks carry less."""
    state = fabric([free], (1.0, 1.0, 4.0))
    request = Request(
        Layout(tensor=8, data=4, pipeline=2),
        8,
        8,
        require="spine",
        volumes=volumes,
        step_seconds=0.5,
    )
    answer = place(request, state)
    assert isinstance(answer, Placement)
    keeps_constraints(request, state, answer)
    elsewhere = place(replace(request, require=None, domain_tolerance=0.0), state)
    assert isinstance(elsewhere, Placement) and elsewhere.cost.seconds < answer.cost.seconds
