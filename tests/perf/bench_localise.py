"""Find one slow link on random fabrics, and find none on healthy ones.

`python -m pytest tests/perf/bench_localise.py -s` prints the tables.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from llmtrain_core.network.localise import localise
from llmtrain_core.network.slow_links import RAISE_AFTER, Claim, next_claims
from llmtrain_core.network.transfer_times import JobTimes
from tests.support.slow_links.cases import Case, random_cases
from tests.support.slow_links.fabric import random_fabric, random_jobs
from tests.support.slow_links.samples import names, random_noise, record_blocks

pytestmark = [pytest.mark.perf, pytest.mark.timeout(1800)]

CASES = 1000
SAMPLES_PER_HOUR = 360
"""The trainer samples the collectives of one step of ten. A step of one second is a short one, so
that is the most samples, and decisions, that an hour of a job gives."""
HEALTHY_JOBS = 320
HOURS_PER_JOB = 10
SLOW_SPELLS_PER_HOUR = 0.6
"""Times at which a whole job is slow, for ten minutes each."""
MAX_GROUPS = 60
"""Healthy jobs with more groups are left out: they take long to simulate."""


def test_the_slow_link_is_named() -> None:
    start = time.process_time()
    cases = list(random_cases(0, CASES))
    seconds = time.process_time() - start
    identifiable = [case for case in cases if case.identifiable]
    print(
        f"\n{CASES} random fabrics, placements, links, factors and noise levels;"
        f" {seconds:.0f} s of CPU time"
    )
    print(f"{'CASES':<40}{'COUNT':>7}{'TOP 1':>8}{'TOP 3':>8}{'ONE LINK':>10}{'FACTOR':>9}")
    _print("identifiable", identifiable)
    _print("  jitter below 5 %", (c for c in identifiable if c.noise.jitter < 0.05))
    _print("  jitter 5 to 10 %", (c for c in identifiable if 0.05 <= c.noise.jitter < 0.1))
    _print("  jitter 10 to 15 %", (c for c in identifiable if c.noise.jitter >= 0.1))
    _print("  uplink of a domain", (c for c in identifiable if c.is_uplink))
    _print("  interfaces of a node or GPU", (c for c in identifiable if not c.is_uplink))
    _print("  confidence 0.9 or more", (c for c in identifiable if c.confidence >= 0.9))
    _print("  confidence less, or no answer", (c for c in identifiable if c.confidence < 0.9))
    _print(
        "slower groups are those of other links", (c for c in cases if c.visible and not c.distinct)
    )
    _print("whole jobs", (c for c in cases if c.visible and c.whole_jobs))
    unseen = [case for case in cases if not case.visible]
    named = sum(bool(case.found.slow_links) for case in unseen)
    print(f"{'no group slower by 1.2':<40}{len(unseen):>7}, a link named in {named}")
    assert len(identifiable) >= 500
    assert _share(identifiable, 1) >= 0.95
    assert _share(identifiable, 3) >= 0.99


def test_no_link_of_healthy_jobs_is_named() -> None:
    start = time.process_time()
    jobs = decisions = answers = alarms = whole_job = 0
    for seed in range(10**6, 2 * 10**6):
        rng, generator = random.Random(seed), np.random.default_rng(seed)
        fabric = random_fabric(rng)
        job = next(iter(random_jobs(fabric, rng)), None)
        if job is None or len(groups := job.groups(fabric)) > MAX_GROUPS:
            continue
        noise = random_noise(rng, slow_spells=SLOW_SPELLS_PER_HOUR / SAMPLES_PER_HOUR)
        samples = HOURS_PER_JOB * SAMPLES_PER_HOUR
        seconds = np.array(job.seconds(fabric, {}))[:, None] * noise.factors(
            len(groups), samples, generator
        )
        crossed = {link for group in groups for link in group.links}
        claims: tuple[Claim, ...] = ()
        blocks = record_blocks(JobTimes(job.name), names(job, groups), groups, seconds)
        for now, times in enumerate(blocks):
            found = localise(times.observations())
            decisions += 1
            whole_job += bool(found.slow_jobs)
            answers += bool(found.slow_links)
            claims = next_claims(claims, found, crossed, now)
            alarms += sum(each.times == RAISE_AFTER and each.last == now for each in claims)
        jobs += 1
        if jobs == HEALTHY_JOBS:
            break
    hours = jobs * HOURS_PER_JOB
    print(
        f"\n{hours} job-hours of {jobs} healthy jobs, {decisions} decisions, of which {whole_job}"
        f" said that the whole job is slow, as it is for an hour of ten; {answers} named a link;"
        f" {alarms} false alarms, which take {RAISE_AFTER} of these in a row;"
        f" {time.process_time() - start:.0f} s of CPU time"
    )
    assert hours >= 3000
    assert alarms <= hours / 1000


def _share(cases: Sequence[Case], most: int) -> float:
    return sum(case.place is not None and case.place <= most for case in cases) / len(cases)


def _print(name: str, cases: Iterable[Case]) -> None:
    """Print shares found, answers of one link, and the median of found over true factor."""
    chosen = list(cases)
    if not chosen:
        return
    first = [case for case in chosen if case.place == 1]
    single = sum(len(case.found.slow_links[0].links) == 1 for case in first)
    factors = sorted(case.found.slow_links[0].factor / case.factor for case in first)
    middle = f"{factors[len(factors) // 2]:.2f}" if factors else "-"
    print(
        f"{name:<40}{len(chosen):>7}{_share(chosen, 1):>8.1%}{_share(chosen, 3):>8.1%}"
        f"{single:>10}{middle:>9}"
    )
