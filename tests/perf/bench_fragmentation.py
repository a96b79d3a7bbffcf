"""Refusals and whole leaves over streams of 200 events, by the choice of the domains.

`python -m pytest tests/perf/bench_fragmentation.py -s` prints the table.
"""

from __future__ import annotations

import time

import pytest

from tests.support.placement.fragmentation import EVENTS, LEAVES, POLICIES, SPINES, run, total

pytestmark = [pytest.mark.perf, pytest.mark.timeout(1800)]

STREAMS = 40


def test_refusals_and_whole_leaves() -> None:
    print(
        f"\n{STREAMS} streams of {EVENTS} events, {SPINES * LEAVES} leaves\n{'POLICY':<16}"
        f"{'REQUIRED':>10}{'refused':>9}{'OTHERS refused':>16}{'WHOLE LEAVES':>14}{'CPU s':>8}"
    )
    found = {}
    for name, policy in POLICIES.items():
        start = time.process_time()
        result = found[name] = total([run(seed, policy) for seed in range(STREAMS)])
        print(
            f"{name:<16}{result.required:>10}{result.refused:>9}{result.others_refused:>16}"
            f"{result.whole_leaves:>14.2f}{time.process_time() - start:>8.1f}"
        )
    ours, best_fit = found["1 % of a step"], found["best fit"]
    assert ours.refused <= 1.1 * best_fit.refused + 2
    assert ours.whole_leaves >= 0.97 * best_fit.whole_leaves
