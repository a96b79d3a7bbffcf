"""How good the placement is: what peers cost beside ours, and how near the optimum it comes.

`python -m pytest tests/perf/bench_placement.py -s` prints the tables; the bars are asserted in
tests/core/placement, which has the cases and the peers.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from itertools import chain
from pathlib import Path
from statistics import mean

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "core" / "placement"))

from judges.cases import small_cases
from judges.contest import contest, real_contests, synthetic_contests, table
from judges.oracle import solve
from judges.problem import problem_of

from llmtrain_core.placement import Placement, place

pytestmark = [pytest.mark.perf, pytest.mark.timeout(1800)]

SYNTHETIC, REAL, SMALL = 176, 56, 160


def test_peers_against_ours() -> None:
    """Exposed communication time of Kueue, Volcano and KAI with rank = pod index, over ours."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for case in chain(synthetic_contests(SYNTHETIC), real_contests(REAL)):
        found[case.name].append(contest(case))
    print("\nTheir communication time over ours, half-full clusters\n" + table(found))
    assert min(min(one.values()) for one in chain.from_iterable(found.values())) >= 1 - 1e-9


def test_ours_against_the_optimum() -> None:
    """Exposed communication time of ours over the least that is possible, where proven."""
    ratios: dict[str, list[float]] = defaultdict(list)
    asked: dict[str, int] = defaultdict(int)
    took, solving = 0.0, 0.0
    for case in small_cases(SMALL):
        start = time.process_time()
        ours = place(case.request, case.snapshot)
        placed = time.process_time()
        assert isinstance(ours, Placement)
        best = solve(problem_of(case.request, case.snapshot), work=4.0)
        took, solving = took + placed - start, solving + time.process_time() - placed
        fabric = case.name.split(", ", 1)[1].split(", tp")[0].split(", dp")[0]
        asked[fabric] += 1
        if best.proven:
            ratios[fabric].append(ours.cost.seconds / best.seconds)
    print(f"\n{'FABRIC':<34}{'CASES':>6}{'PROVEN':>8}{'mean':>9}{'worst':>9}")
    for fabric, values in sorted(ratios.items()):
        print(f"{fabric:<34}{asked[fabric]:>6}{len(values):>8}"
              f"{mean(values):>9.4f}{max(values):>9.4f}")  # fmt: skip
    everything = list(chain.from_iterable(ratios.values()))
    print(f"{'all':<34}{SMALL:>6}{len(everything):>8}"
          f"{mean(everything):>9.4f}{max(everything):>9.4f}")  # fmt: skip
    print(f"{SMALL} placements in {took:.1f} s, {SMALL} proofs in {solving:.1f} s of CPU")
    assert mean(everything) <= 1.02
