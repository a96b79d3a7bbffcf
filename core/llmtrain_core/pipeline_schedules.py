"""Idle time and peak memory of the pipeline schedules, in closed form.

The unit of time is the forward pass of one chunk. The backward pass takes 2 units (1 for inputs, 1
for weights), so a rank is busy for 3 m v units with m micro-batches and v chunks. Sources: GPipe
(arXiv:1811.06965), PipeDream-flush and interleaving (Narayanan et al., arXiv:2104.04473), zero
bubble (Qi et al., arXiv:2401.10241), DualPipe in V shape (DeepSeek-V3, arXiv:2412.19437). Tests
compare the formulas with a simulation of torch's schedules.
"""

from __future__ import annotations

from typing import Literal, get_args

from llmtrain_core.errors import PlanError

Schedule = Literal[
    "GPipe",
    "1F1B",
    "Interleaved1F1B",
    "LoopedBFS",
    "InterleavedZeroBubble",
    "ZBVZeroBubble",
    "DualPipeV",
]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

ONE_STAGE: frozenset[Schedule] = frozenset({"GPipe", "1F1B"})
"""Schedules with one chunk per rank."""
V_SHAPED: frozenset[Schedule] = frozenset({"ZBVZeroBubble", "DualPipeV"})
"""Schedules with two chunks per rank; the second chunks run from the last rank to the first."""

SPLIT_BACKWARD: frozenset[Schedule] = frozenset(
    {"InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV"}
)
"""Schedules that compute the gradients of inputs and of weights at different times."""

FORWARD_AND_BACKWARD = 3
"""Time of one micro-batch on one chunk, forward and backward, in forward passes."""


def check_schedule(schedule: Schedule, stages: int, micro_batches: int, chunks: int) -> None:
    """Raise PlanError if torch's schedule does not accept these numbers."""
    if stages == 1:
        return
    check_chunks(schedule, chunks)
    least = min_micro_batches(schedule, stages)
    if micro_batches < least:
        raise PlanError(
            f"{micro_batches} micro-batches cannot fill {stages} stages of {schedule}",
            f"use at least {least}",
        )
    if not equal_rounds(schedule, stages, micro_batches):
        raise PlanError(
            f"{micro_batches} micro-batches cannot be split into"
            f" {micro_batches // stages} equal rounds",
            f"use {micro_batches // stages * stages}",
        )


def check_chunks(schedule: Schedule, chunks: int) -> None:
    """Raise PlanError if a schedule does not support this number of chunks per rank."""
    if schedule in ONE_STAGE and chunks != 1:
        raise PlanError(f"{schedule} has one chunk per rank, not {chunks}", "use virtualStages 1")
    if schedule in V_SHAPED and chunks != 2:
        raise PlanError(f"{schedule} has two chunks per rank, not {chunks}", "use virtualStages 2")
    if schedule not in ONE_STAGE and chunks < 2:
        raise PlanError(f"{schedule} needs at least two chunks per rank", "use virtualStages 2")


def min_micro_batches(schedule: Schedule, stages: int) -> int:
    """Return the minimum number of micro-batches of a pipeline."""
    if stages == 1:
        return 1
    return 2 * stages if schedule == "DualPipeV" else stages


def equal_rounds(schedule: Schedule, stages: int, micro_batches: int) -> bool:
    """Return True if the schedule can split the micro-batches into rounds of equal size."""
    if stages == 1 or schedule not in {"Interleaved1F1B", "InterleavedZeroBubble"}:
        return True
    return micro_batches % max(1, micro_batches // stages) == 0


def stage_numbers(schedule: Schedule, rank: int, ranks: int, chunks: int) -> tuple[int, ...]:
    """Return the stages of one pipeline rank, in model order.

    Looped schedules assign every `ranks`-th stage. In V shape, the second half of the stages runs
    from the last rank to the first, so rank 0 has both ends of the model.
    """
    if ranks == 1:
        return (0,)
    if schedule in V_SHAPED:
        return rank, 2 * ranks - 1 - rank
    return tuple(rank + turn * ranks for turn in range(chunks))


def idle_units(schedule: Schedule, stages: int, micro_batches: int, chunks: int = 1) -> int:
    """Return the idle time of a rank in one step, in forward passes of one chunk.

    GPipe and all 1F1B schedules: 3 (p - 1), for fill and drain. Zero bubble: p - 1, because weight
    gradients are computed during the drain; in V shape with m below (3 p - 1) / 2:
    2 (2 p - 1 - m). DualPipeV: 2 (p - 1).
    """
    check_schedule(schedule, stages, micro_batches, chunks)
    steps = stages - 1
    if schedule == "ZBVZeroBubble":
        return max(steps, 2 * (2 * stages - 1 - micro_batches)) if steps else 0
    if schedule == "InterleavedZeroBubble":
        return steps
    if schedule == "DualPipeV":
        return 2 * steps
    return FORWARD_AND_BACKWARD * steps


def bubble_fraction(schedule: Schedule, stages: int, micro_batches: int, chunks: int = 1) -> float:
    """Return the share of a step in which a rank is idle."""
    idle = idle_units(schedule, stages, micro_batches, chunks)
    return idle / (idle + FORWARD_AND_BACKWARD * micro_batches * chunks)


def peak_micro_batches(
    schedule: Schedule, stages: int, micro_batches: int, chunks: int = 1, rank: int = 0
) -> float:
    """Return the maximum number of micro-batches whose activations a rank holds, in whole stages.

    A stage is all chunks of a rank: one chunk of two counts as 0.5. For V-shaped schedules the
    figure is that of the worst rank.
    """
    check_schedule(schedule, stages, micro_batches, chunks)
    if stages == 1:
        return 1.0
    if schedule in {"GPipe", "LoopedBFS"}:
        return float(micro_batches)
    if schedule == "1F1B":
        return float(min(stages - rank, micro_batches))
    if schedule == "DualPipeV":
        return stages + 0.5
    if schedule == "Interleaved1F1B":
        per_round = micro_batches // max(1, micro_batches // stages)
        warm_up = 2 * (stages - 1 - rank) + (chunks - 1) * per_round + 1
        return min(float(micro_batches), warm_up / chunks)
    return float(min(stages, micro_batches))
