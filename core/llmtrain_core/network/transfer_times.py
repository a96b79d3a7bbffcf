"""The usual transfer times of a group, and how far recent ones deviate from them.

A transfer time is the time of a collective, or of the network probe, without the waiting for the
last rank: the least over the ranks of the group. Samples count in blocks of `BLOCK_SAMPLES`, of
which the median is taken, so single slow steps have no effect.

The usual time of a group is the lower quartile of its blocks. What is slow since the start of the
job is usual by that: `LLMTrainCollectiveSlowerThanPlanned` shows it.

Groups share links. While one of them is slow, another one may have more bandwidth than usual.
Blocks of that time do not count for its usual time, or it would look slow as soon as the first one
is as fast as before. After `MAX_LEFT_OUT` of them in a row they do: the group is faster for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log, sqrt
from statistics import fmean, median

from llmtrain_core.network.links import Group
from llmtrain_core.network.localise import SUSPECT_RATIO, Observation

BLOCK_SAMPLES = 10
"""Sampled steps of a block. Greyhound (Wu et al., USENIX ATC 2025) asks for as many iterations."""
MAX_BLOCKS = 100
"""Blocks that are kept: as long as 1,000 sampled steps."""
RECENT_BLOCKS = 2
"""Blocks that are compared with the usual time."""
LEAST_BLOCKS = 4
"""Blocks without which a group has no usual time."""
MAX_LEFT_OUT = MAX_BLOCKS // 2
"""Blocks in a row that are left out because of a slow group."""
_CERTAIN = 3.0
"""Standard errors by which a group has to be slow, so that blocks of others are left out."""
_MEDIAN_ERROR = 1.2533
"""Standard error of a median over that of a mean, for normal samples."""
_FROM_DEVIATION = 1.4826
"""Standard deviation over the median absolute deviation, for normal samples."""
_INDEPENDENT = 0.5
"""Share of the samples that counts as independent: neighbours in time are alike."""
LEAST_ERROR = 0.01


@dataclass(frozen=True, slots=True)
class SampleBlock:
    """Summary of consecutive samples of a group."""

    seconds: float
    """Median."""
    error: float
    """Standard error of its logarithm."""


def block_of(samples: Sequence[float]) -> SampleBlock:
    """Summarise transfer times in seconds. Raises ValueError if one is not positive."""
    if not samples or min(samples) <= 0:
        raise ValueError("a transfer time must be above 0 seconds")
    logs = [log(value) for value in samples]
    middle = median(logs)
    deviation = _FROM_DEVIATION * median(abs(value - middle) for value in logs)
    error = _MEDIAN_ERROR * deviation / sqrt(max(1.0, len(logs) * _INDEPENDENT))
    return SampleBlock(median(samples), max(LEAST_ERROR, error))


@dataclass(frozen=True, slots=True)
class History:
    """The blocks of one group, operation and payload, oldest first."""

    group: Group
    blocks: tuple[SampleBlock, ...] = ()
    """Those that count for the usual time."""
    recent: tuple[SampleBlock, ...] = ()
    left_out: int = 0
    """Blocks in a row that do not count for the usual time."""

    def add(self, block: SampleBlock, is_usual: bool = True) -> History:
        """Return this with one more block."""
        recent = (*self.recent, block)[-RECENT_BLOCKS:]
        if not is_usual and self.left_out < MAX_LEFT_OUT:
            return replace(self, recent=recent, left_out=self.left_out + 1)
        blocks, left_out = (*self.blocks, block)[-MAX_BLOCKS:], 0 if is_usual else self.left_out
        return History(self.group, blocks, recent, left_out)

    def usual_seconds(self) -> float | None:
        """Return the usual time, if there are enough blocks."""
        if len(self.blocks) < LEAST_BLOCKS:
            return None
        ordered = sorted(block.seconds for block in self.blocks)
        return ordered[(len(ordered) - 1) // 4]

    def log_ratio(self, block: SampleBlock) -> float:
        """Return the logarithm of a block's time over the usual one; 0 without a usual one."""
        usual = self.usual_seconds()
        return 0.0 if usual is None else log(block.seconds / usual)


@dataclass(frozen=True, slots=True)
class JobTimes:
    """The transfer times of one job, by what was transferred, and group."""

    job: str
    histories: Mapping[tuple[str, str], History] = field(default_factory=dict)
    """By (operation and payload, name of the group)."""

    def observations(self) -> list[Observation]:
        """Return how far the last blocks of each group deviate; nothing without a usual time.

        Of several operations of a group, the one with the least relative error counts.
        """
        found: dict[str, Observation] = {}
        for (_, name), history in self.histories.items():
            usual = history.usual_seconds()
            if usual is None:
                continue
            recent, group = history.recent, history.group
            ratio = fmean(log(block.seconds / usual) for block in recent)
            error = sqrt(sum(block.error**2 for block in recent)) / len(recent)
            if name not in found or error < found[name].error:
                found[name] = Observation(name, self.job, group.label, group.links, ratio, error)
        return list(found.values())


def record(times: JobTimes, blocks: Iterable[tuple[str, str, Group, SampleBlock]]) -> JobTimes:
    """Return the times with one more block of each group: (what, name, group, block).

    All blocks are of the same time.
    """
    histories = dict(times.histories)
    measured: list[tuple[tuple[str, str], History, SampleBlock, float]] = []
    for what, name, group, block in blocks:
        history = histories.get((what, name), History(group))
        measured.append(((what, name), history, block, history.log_ratio(block)))
    least = log(SUSPECT_RATIO)
    is_one_slow = any(ratio > least + _CERTAIN * block.error for *_, block, ratio in measured)
    for key, history, block, ratio in measured:
        has_more_bandwidth = is_one_slow and ratio < -least
        histories[key] = history.add(block, is_usual=not has_more_bandwidth)
    return JobTimes(times.job, histories)
