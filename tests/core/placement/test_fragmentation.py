"""What streams of jobs leave to later ones; `make bench-fragmentation` runs more of them."""

from __future__ import annotations

import pytest

from tests.support.placement.fragmentation import POLICIES, run, total

pytestmark = [pytest.mark.unit, pytest.mark.timeout(300)]

SEEDS = range(3)


def test_as_many_whole_leaves_are_kept_as_by_best_fit() -> None:
    """Cost alone, which spreads jobs, left 3.5 whole leaves of 32 and refused 23 of 293 jobs."""
    ours, best_fit = (
        total([run(seed, POLICIES[name]) for seed in SEEDS])
        for name in ("1 % of a step", "best fit")
    )
    assert ours.required == best_fit.required > 250
    assert ours.refused <= best_fit.refused + 2, (ours, best_fit)
    assert ours.others_refused <= best_fit.others_refused
    assert ours.whole_leaves >= 0.97 * best_fit.whole_leaves, (ours, best_fit)
