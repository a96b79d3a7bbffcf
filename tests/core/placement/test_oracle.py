"""The solver that judges the placement is right itself, and reads the same cost model."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Request
from llmtrain_core.placement.cost import cost_of
from llmtrain_core.placement.traffic.volumes import GroupTraffic, TrafficVolumes
from llmtrain_core.topology.inventory import Node, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel
from tests.support.placement.cases import GPU, MB, SMALL, Case, hardened, random_case, small_cases
from tests.support.placement.oracle import brute_force, solve
from tests.support.placement.problem import Problem, problem_of

pytestmark = pytest.mark.unit

TINY = (
    (Layout(tensor=8, data=3), 8),
    (Layout(tensor=8, data=2, pipeline=2), 8),
    (Layout(tensor=4, data=4, pipeline=2), 8),
    (Layout(tensor=8, context=2, data=2), 8),
    (Layout(data=2, replicate=2, pipeline=4), 4),
    (Layout(tensor=8, pipeline=5), 8),
    (Layout(tensor=8, data=5), 8),
)
"""Layouts of 3 to 5 nodes."""

ROOMS = 7
"""Free nodes of a tiny case: 2,520 placements of 5 blocks."""


def tiny(seed: int) -> Problem:
    case = random_case(seed, SMALL[seed % len(SMALL)], *TINY[seed % len(TINY)])
    problem = problem_of(*question(hardened(case, seed) if seed % 3 else case))
    rooms = random.Random(seed).sample(problem.rooms, min(ROOMS, len(problem.rooms)))
    return replace(problem, rooms=tuple(sorted(rooms)))


def question(case: Case) -> tuple:  # type: ignore[type-arg]
    return case.request, case.snapshot


@pytest.mark.parametrize("seed", range(28))
def test_the_solver_finds_what_trying_everything_finds(seed: int) -> None:
    problem = tiny(seed)
    found, best = solve(problem, work=10), brute_force(problem)
    assert found.proven
    assert found.seconds == pytest.approx(best.seconds, rel=1e-5)
    assert found.bound == pytest.approx(best.seconds, rel=1e-5)


def test_tiny_cases_tell_good_from_bad() -> None:
    """At least every second tiny case has a worst order 1.3 times as slow as the best."""
    worse = 0
    for seed in range(12):
        problem = tiny(seed)
        rng = random.Random(seed)
        orders = [rng.sample(problem.rooms, problem.blocks) for _ in range(200)]
        worse += max(map(problem.seconds, orders)) > 1.3 * brute_force(problem).seconds
    assert worse >= 6


@pytest.mark.parametrize("seed", range(24))
def test_both_cost_models_agree_on_any_order(seed: int) -> None:
    case = small_cases(seed + 1)[seed]
    for one in (case, hardened(case, seed), hardened(case, seed + 1)):
        problem = problem_of(*question(one))
        for order in (
            random.Random(seed).sample(problem.rooms, problem.blocks),
            problem.rooms[: problem.blocks],
        ):
            cost = cost_of(one.request, one.snapshot, order)
            assert cost.by_group == pytest.approx(problem.by_kind(order), rel=1e-9)
            assert cost.seconds == pytest.approx(problem.seconds(order), rel=1e-9)


@pytest.mark.parametrize("seed", range(16))
def test_a_proven_optimum_costs_what_the_solver_says(seed: int) -> None:
    case = small_cases(seed + 1)[seed]
    one = hardened(case, seed) if seed % 2 else case
    found = solve(problem_of(*question(one)), work=2)
    cost = cost_of(one.request, one.snapshot, found.order)
    assert cost.seconds == pytest.approx(found.seconds, rel=1e-9)
    assert found.bound <= found.seconds * (1 + 1e-5)
    if found.proven:
        assert found.bound == pytest.approx(cost.seconds, rel=1e-5)


def test_one_nvlink_carries_what_stays_in_a_node_and_what_goes_to_a_near_one() -> None:
    """Eight nodes of an NVLink rack: of a data ring of 16 x 4, 4 edges stay and 4 leave a node."""
    levels = (FabricLevel("rack", "r", 2, nvlink=True), NODE)
    nodes = [Node(f"n{index}", {"r": f"r{index // 18}"}, {GPU: 8}) for index in range(36)]
    state = snapshot(levels, nodes, [])
    request = Request(
        Layout(tensor=4, data=16), 8, 8, volumes=TrafficVolumes({"data": GroupTraffic(100 * MB)})
    )
    problem = problem_of(request, state)
    cost = cost_of(request, state, problem.rooms[:8])
    rate = state.links.nvlink_rate_per_gpu
    assert cost.seconds == pytest.approx(8 * 100 * MB / (8 * rate), rel=1e-9)
    assert cost.seconds == pytest.approx(problem.seconds(problem.rooms[:8]), rel=1e-9)


def test_the_solver_answers_alike_twice() -> None:
    problem = problem_of(*question(small_cases(20)[19]))
    assert solve(problem, work=1) == solve(problem, work=1)
