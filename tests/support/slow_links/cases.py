"""Localisation cases: one slow link on a random fabric, and what was found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llmtrain_core.network.links import LinkPath
from llmtrain_core.network.localise import SUSPECT_RATIO, Localisation, localise
from llmtrain_core.network.transfer_times import BLOCK_SAMPLES
from tests.support.slow_links.fabric import Fabric, SimulatedJob, random_fabric, random_jobs
from tests.support.slow_links.samples import Noise, measured, random_noise


@dataclass(frozen=True, slots=True)
class Case:
    """A slow link, and the result of the localisation."""

    seed: int
    fabric: Fabric
    jobs: tuple[SimulatedJob, ...]
    link: LinkPath
    factor: float
    noise: Noise
    alike: frozenset[LinkPath]
    """Links that the same groups cross, of the labels that slow down; the slow one among them."""
    visible: bool
    """Whether a group is slower by SUSPECT_RATIO or more, but for noise."""
    distinct: bool
    """Whether the slower groups are closer to those that cross it than to those of other links.
    Where other links limit some of its groups, they may not be."""
    whole_jobs: bool
    """Whether all groups of the jobs that cross it do so: they may be slow for other reasons."""
    found: Localisation

    @property
    def is_uplink(self) -> bool:
        """Whether the slow link is the uplink of a domain."""
        return len(self.link) < len(self.fabric.nodes[0])

    @property
    def identifiable(self) -> bool:
        """Whether the times of the groups show which link is slow, up to those crossed alike."""
        return self.visible and self.distinct and not self.whole_jobs

    @property
    def confidence(self) -> float:
        """Return the confidence of the first answer; 0 if there is none."""
        return self.found.slow_links[0].confidence if self.found.slow_links else 0.0

    @property
    def place(self) -> int | None:
        """Return the place of the slow link among the answers, from 1; None if it is missing."""
        links = self.found.slow_links
        answers = [each.links for each in links]
        answers += [other.links for each in links[:1] for other in each.alternatives]
        ranked = dict.fromkeys(answers)
        return next(
            (
                n
                for n, answer in enumerate(ranked, 1)
                if self.link in answer and self.alike.issuperset(answer)
            ),
            None,
        )


def random_case(seed: int) -> Case:
    """Return one case: a random fabric, jobs, slow link, factor and noise."""
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    crossed: dict[LinkPath, set[tuple[str, int]]] = {}
    while not crossed:
        fabric = random_fabric(rng)
        jobs = random_jobs(fabric, rng)
        groups = {job.name: job.groups(fabric) for job in jobs}
        for name, found in groups.items():
            for number, group in enumerate(found):
                for each in group.links:
                    crossed.setdefault(each, set()).add((name, number))
    by_depth: dict[int, list[LinkPath]] = {}
    for each in crossed:
        by_depth.setdefault(len(each), []).append(each)
    link = rng.choice(sorted(by_depth[rng.choice(sorted(by_depth))]))
    factor = 1.3 * (8 / 1.3) ** rng.random()
    noise = random_noise(rng)
    slow = {link: factor}
    ratios = {
        (job.name, number): later / usual
        for job in jobs
        for number, (later, usual) in enumerate(
            zip(job.seconds(fabric, slow), job.seconds(fabric, {}), strict=True)
        )
    }
    labels = {key: groups[key[0]][key[1]].label for key in ratios}
    slowed = {key for key, ratio in ratios.items() if ratio >= SUSPECT_RATIO}
    noticed = {labels[key] for key in slowed}
    compared = {each: {key for key in by if labels[key] in noticed} for each, by in crossed.items()}
    distance = {each: len(by ^ slowed) for each, by in compared.items()}
    alike = frozenset(each for each, by in compared.items() if by == compared[link])
    touched = {name for name, _ in crossed[link]}
    observations = [
        each
        for job in jobs
        for each in measured(
            job,
            fabric,
            slow,
            noise,
            generator,
            healthy=8 * BLOCK_SAMPLES,
            degraded=2 * BLOCK_SAMPLES + rng.randrange(BLOCK_SAMPLES),
        ).observations()
    ]
    return Case(
        seed,
        fabric,
        tuple(jobs),
        link,
        factor,
        noise,
        alike,
        bool(slowed),
        distance[link] == min(distance.values())
        and sum(distance[each] == distance[link] for each in distance) == len(alike),
        len(crossed[link]) == sum(len(groups[name]) for name in touched),
        localise(observations),
    )


def random_cases(first: int, count: int) -> Iterator[Case]:
    """Yield cases of consecutive seeds."""
    return map(random_case, range(first, first + count))
