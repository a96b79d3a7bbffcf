"""How good the placement is: what peers cost beside ours, and how near the optimum it comes.

`python -m pytest tests/perf/bench_placement.py -s` prints the tables; the bars are asserted in
tests/core/placement, which has the cases and the peers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from statistics import mean

import pytest

from llmtrain_core.placement import Placement, place
from tests.support.placement.arnold_settings import (
    FULL,
    LARGE,
    MEDIUM,
    NARROW,
    RATIOS,
    SKEWS,
    best_fit,
    our_spread,
)
from tests.support.placement.arnold_settings import SMALL as LEAST
from tests.support.placement.cases import (
    Case,
    hardened,
    small_case,
    small_cases,
    with_one_free_node_more,
)
from tests.support.placement.comparison import (
    compare,
    large_case,
    real_cases,
    synthetic_cases,
    table,
)
from tests.support.placement.oracle import solve
from tests.support.placement.problem import problem_of

pytestmark = [pytest.mark.perf, pytest.mark.timeout(1800)]

SYNTHETIC, REAL, SMALL, HARDENED = 176, 56, 400, 300
GROWN = 100
"""Clusters of every kind that get one more free node."""


def test_peers_against_ours() -> None:
    """Exposed communication time of Kueue, Volcano and KAI with rank = pod index, over ours."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for case in chain(synthetic_cases(SYNTHETIC), real_cases(REAL)):
        found[case.name].append(compare(case))
    print("\nTheir communication time over ours, half-full clusters\n" + table(found))
    assert min(min(one.values()) for one in chain.from_iterable(found.values())) >= 1 - 1e-9


def test_ours_against_the_optimum() -> None:
    """Exposed communication time of ours over the least that is possible, where proven."""
    ratios: dict[str, list[float]] = defaultdict(list)
    asked: dict[str, int] = defaultdict(int)
    took, solving = 0.0, 0.0
    drawn = [(case, case.name.split(", ", 1)[1]) for case in small_cases(SMALL)]
    drawn += [
        (hardened(case, seed), "with NVLink and shared uplinks")
        for seed, case in enumerate(small_cases(HARDENED))
    ]
    for case, name in drawn:
        start = time.process_time()
        ours = place(case.request, case.snapshot)
        placed = time.process_time()
        assert isinstance(ours, Placement)
        best = solve(problem_of(case.request, case.snapshot), work=4.0)
        took, solving = took + placed - start, solving + time.process_time() - placed
        fabric = name.split(", tp")[0].split(", dp")[0]
        asked[fabric] += 1
        if best.proven:
            ratios[fabric].append(ours.cost.seconds / best.seconds)
    print(f"\n{'FABRIC':<34}{'CASES':>6}{'PROVEN':>8}{'mean':>9}{'worst':>9}")
    for fabric, values in sorted(ratios.items()):
        print(
            f"{fabric:<34}{asked[fabric]:>6}{len(values):>8}{mean(values):>9.4f}{max(values):>9.4f}"
        )
    everything = list(chain.from_iterable(ratios.values()))
    print(
        f"{'all':<34}{len(drawn):>6}{len(everything):>8}"
        f"{mean(everything):>9.4f}{max(everything):>9.4f}"
    )
    print(f"{len(drawn)} placements in {took:.1f} s, as many proofs in {solving:.1f} s of CPU")
    assert mean(everything) <= 1.02


KINDS: dict[str, tuple[Callable[[int], Case], float]] = {
    "4 to 16 nodes": (small_case, 0.0),
    "with NVLink and shared uplinks": (lambda seed: hardened(small_case(seed), seed), 0.01),
    "8 to 64 nodes": (large_case, 0.1),
}
"""How cases are drawn, and the share of them in which one more free node may cost time."""


def test_one_more_free_node() -> None:
    """How often the search finds less with more room: it is no proof of the optimum."""
    print(f"\n{'JOBS':<34}{'CASES':>6}{'SLOWER':>8}{'worst':>9}{'ms of CPU':>11}")
    for kind, (draw, share) in KINDS.items():
        ratios: list[float] = []
        start = time.process_time()
        for seed in range(31_000, 31_000 + GROWN):
            case = draw(seed)
            grown = with_one_free_node_more(case, seed)
            before, after = (place(case.request, one.snapshot) for one in (case, grown))
            assert isinstance(before, Placement)
            assert isinstance(after, Placement)
            ratios.append(after.cost.seconds / before.cost.seconds)
        took = (time.process_time() - start) / 2 / len(ratios)
        slower = sum(ratio > 1 + 1e-9 for ratio in ratios)
        print(f"{kind:<34}{len(ratios):>6}{slower:>8}{max(ratios):>9.3f}{took * 1e3:>11.0f}")
        assert slower <= share * len(ratios), kind


def test_spread_over_minipods_beside_arnold_and_best_fit() -> None:
    """Most minipods of one DP and of one PP group. The large job also where uplinks are full."""
    print(
        f"\n{'NODES':<7}{'UPLINKS':<9}{'MOSTLY':<10}{'SKEW':<6}{'Arnold':>9}{'ours':>9}"
        f"{'best-fit':>10}   DP/PP"
    )
    for setting in (LEAST, MEDIUM, LARGE, replace(LARGE, oversubscription=FULL)):
        uplinks = "7:1" if setting.oversubscription == NARROW else "1:1"
        for mostly in sorted(RATIOS):
            for skew in SKEWS:
                arnold = setting.spread(setting.arnold(mostly, skew))
                ours, greedy = our_spread(setting, mostly, skew), best_fit(setting, skew)
                shown = ["{}/{}".format(*pair) for pair in (arnold, ours, greedy)]
                print(
                    f"{setting.nodes:<7}{uplinks:<9}{mostly:<10}{skew:<6}{shown[0]:>9}"
                    f"{shown[1]:>9}{shown[2]:>10}"
                )
                kind = 0 if mostly == "data" else 1
                assert ours[kind] <= greedy[kind] or (setting is LARGE and skew == SKEWS[-1])
