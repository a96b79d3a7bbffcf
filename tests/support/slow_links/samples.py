"""Noise of transfer times, and what is known of a job after some blocks of samples."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtrain_core.network.links import Group, LinkPath
from llmtrain_core.network.transfer_times import BLOCK_SAMPLES, JobTimes, block_of, record
from tests.support.slow_links.fabric import Fabric, SimulatedJob

Samples = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Noise:
    """What the transfer times of a healthy job vary by."""

    jitter: float = 0.05
    """Standard deviation of the logarithm, of each sample of each group."""
    drift: float = 0.03
    """The same of a process with a time constant of 50 samples, for each group."""
    common: float = 0.02
    """The same of all samples of a job and step."""
    spikes: float = 0.02
    """Share of samples that take 1.5 to 5 times as long."""
    slow_spells: float = 0.0
    """Probability of each step that the whole job takes 1.3 times as long for 60 samples."""

    def factors(self, groups: int, samples: int, rng: np.random.Generator) -> Samples:
        """Return factors of shape (groups, samples)."""
        logs = rng.normal(0.0, self.jitter, (groups, samples))
        logs += rng.normal(0.0, self.common, samples)
        keep = np.exp(-1 / 50)
        drift = rng.normal(0.0, self.drift, groups)
        steps = rng.normal(0.0, self.drift * np.sqrt(1 - keep**2), (samples, groups))
        for step in range(samples):
            logs[:, step] += drift
            drift = keep * drift + steps[step]
        spiked = rng.random((groups, samples)) < self.spikes
        logs += spiked * np.log(rng.uniform(1.5, 5.0, (groups, samples)))
        if self.slow_spells:
            for start in np.flatnonzero(rng.random(samples) < self.slow_spells):
                logs[:, start : start + 60] += np.log(1.3)
        return np.exp(logs)


def random_noise(rng: random.Random, slow_spells: float = 0.0) -> Noise:
    """Return noise of a random level."""
    return Noise(
        jitter=rng.uniform(0.01, 0.15),
        drift=rng.uniform(0.0, 0.04),
        common=rng.uniform(0.0, 0.05),
        spikes=rng.uniform(0.0, 0.05),
        slow_spells=slow_spells,
    )


def names(job: SimulatedJob, groups: Sequence[Group]) -> list[str]:
    """Return unique names of groups."""
    return [f"{job.name} {group.label}{group.first_rank}" for group in groups]


def record_blocks(
    times: JobTimes, names: Sequence[str], groups: Sequence[Group], samples: Samples
) -> Iterator[JobTimes]:
    """Yield the times after each block of samples, which have the shape (groups, samples)."""
    for end in range(BLOCK_SAMPLES, samples.shape[1] + 1, BLOCK_SAMPLES):
        blocks = samples[:, end - BLOCK_SAMPLES : end].tolist()
        times = record(
            times,
            [
                ("probe", name, group, block_of(block))
                for name, group, block in zip(names, groups, blocks, strict=True)
            ],
        )
        yield times


def measured(
    job: SimulatedJob,
    fabric: Fabric,
    slow: Mapping[LinkPath, float],
    noise: Noise,
    rng: np.random.Generator,
    *,
    healthy: int,
    degraded: int,
) -> JobTimes:
    """Return the times of a job with slow links in the last `degraded` samples."""
    groups = job.groups(fabric)
    usual = np.array(job.seconds(fabric, {}))
    later = np.array(job.seconds(fabric, slow))
    seconds = np.concatenate(
        (np.tile(usual[:, None], healthy), np.tile(later[:, None], degraded)), axis=1
    )
    seconds *= noise.factors(len(groups), healthy + degraded, rng)
    return [*record_blocks(JobTimes(job.name), names(job, groups), groups, seconds)][-1]
