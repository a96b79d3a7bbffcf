"""Within a few per cent of the least cost there is, where the solver proves what that is.

`make test` has a third of the cases, `make fuzz` all.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import pytest

from llmtrain_core.placement import Placement, place
from llmtrain_core.placement.cost import cost_of
from llmtrain_core.topology.inventory import Snapshot
from tests.support.placement.cases import Case, hardened, small_cases
from tests.support.placement.free_nodes import Path
from tests.support.placement.oracle import solve
from tests.support.placement.problem import Problem, problem_of

pytestmark = [pytest.mark.unit, pytest.mark.timeout(900)]

WORK = 1.0
"""Deterministic time of the solver by case."""
EXACT = 1e-5
"""The solver's resolution."""


def order_of(placement: Placement, state: Snapshot) -> list[Path]:
    names = [level.name for level in state.levels]
    return [tuple(node.path[name] for name in names) for node in placement.nodes]


def judged(cases: Sequence[Case]) -> tuple[dict[str, float], int]:
    """Return our cost over the proven optimum by case, and how many networks bind."""
    ratios: dict[str, float] = {}
    contested = 0
    for case in cases:
        ours = place(case.request, case.snapshot)
        assert isinstance(ours, Placement), f"{case.name}: {ours}"
        order = order_of(ours, case.snapshot)
        assert ours.cost == cost_of(case.request, case.snapshot, order)
        problem = problem_of(case.request, case.snapshot)
        if ours.cost.seconds <= floor(problem) * (1 + EXACT):
            ratios[case.name] = 1.0
            continue
        best = solve(problem, WORK, start=order)
        assert ours.cost.seconds >= best.bound * (1 - EXACT), case.name
        if best.proven:
            ratios[case.name] = ours.cost.seconds / best.seconds
            contested += best.seconds > ours.cost.ideal_seconds * 1.01
    return ratios, contested


def floor(problem: Problem) -> float:
    """Return what no placement undercuts: all blocks in one nearest domain, on no uplink."""
    leaf = problem.rooms[0][:-1]
    return problem.seconds([(*leaf, str(block)) for block in range(problem.blocks)])


def holds(ratios: dict[str, float]) -> None:
    """Print the worst cases and assert the bar."""
    worst = sorted(ratios, key=lambda name: -ratios[name])[:5]
    shown = "\n".join(f"{ratios[name]:.4f} {name}" for name in worst)
    print(f"\n{len(ratios)} proven, mean {mean(ratios.values()):.4f}, worst\n{shown}")
    assert mean(ratios.values()) <= 1.02, shown
    assert max(ratios.values()) <= 1.10, shown


@pytest.mark.parametrize(
    ("cases", "proven", "hard"),
    [(40, 35, 13), pytest.param(120, 105, 40, marks=pytest.mark.exhaustive)],
)
def test_within_two_per_cent_of_the_optimum(cases: int, proven: int, hard: int) -> None:
    """Jobs of 4 to 16 nodes on 8 fabrics of one to three levels, oversubscribed 1 to 8."""
    ratios, contested = judged(small_cases(cases))
    assert len(ratios) >= proven, "too few optima are proven"
    assert contested >= hard, "too many cases are easy: every network is wide enough"
    holds(ratios)


@pytest.mark.parametrize(
    ("cases", "proven", "hard"),
    [(16, 13, 5), pytest.param(48, 40, 15, marks=pytest.mark.exhaustive)],
)
def test_within_two_per_cent_where_uplinks_are_shared_and_nvlink_spans_nodes(
    cases: int, proven: int, hard: int
) -> None:
    ratios, contested = judged(
        [hardened(case, seed) for seed, case in enumerate(small_cases(cases))]
    )
    assert len(ratios) >= proven, "too few optima are proven"
    assert contested >= hard, "too many cases are easy: every network is wide enough"
    holds(ratios)
