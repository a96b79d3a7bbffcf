"""Bubble and peak memory of every schedule, against a simulation of torch's own schedules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmtrain_core.errors import PlanError
from llmtrain_core.pipeline_schedules import (
    SCHEDULES,
    Schedule,
    bubble_fraction,
    idle_units,
    peak_micro_batches,
)

CASES: list[tuple[Schedule, int, int, int]] = [
    *((name, p, m, 1) for name in ("GPipe", "1F1B") for p, m in ((2, 2), (3, 7), (4, 8), (8, 32))),
    *(
        ("Interleaved1F1B", p, m, v)
        for p, m in ((2, 3), (4, 4), (4, 5), (4, 8), (8, 32))
        for v in (2, 3, 4)
    ),
    *(("LoopedBFS", p, m, v) for p, m in ((2, 3), (4, 8)) for v in (2, 3)),
    *(("InterleavedZeroBubble", p, m, v) for p, m in ((2, 2), (4, 8), (8, 16)) for v in (2, 3)),
    *(
        ("ZBVZeroBubble", p, m, 2)
        for p, m in ((2, 2), (3, 4), (4, 4), (4, 5), (6, 8), (8, 11), (8, 32))
    ),
    *(("DualPipeV", p, m, 2) for p, m in ((2, 4), (4, 8), (4, 11), (8, 32))),
]


@pytest.mark.torch
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_closed_forms_equal_the_simulation_of_torch(schedule: Schedule) -> None:
    cases = [case for case in CASES if case[0] == schedule]
    assert len(cases) >= 4
    for _, ranks, micro_batches, chunks in cases:
        total, peaks = _simulate(schedule, ranks, micro_batches, chunks)
        work = 3 * micro_batches * chunks
        case = (schedule, ranks, micro_batches, chunks)
        assert total - work == idle_units(*case), case
        assert 1 - work / total == pytest.approx(bubble_fraction(*case)), case
        expected = [peak_micro_batches(*case, rank=rank) for rank in range(ranks)]
        assert max(peaks) == max(expected), (case, peaks)
        if schedule in {"GPipe", "1F1B", "Interleaved1F1B", "LoopedBFS"}:
            assert peaks == expected, case


def _simulate(name: str, ranks: int, micro_batches: int, chunks: int) -> tuple[int, list[float]]:
    """Run a schedule's actions as soon as what they need is there: forward 1, backward 1 + 1."""
    from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

    actions = get_schedule_ops(name, ranks, micro_batches, chunks if chunks > 1 else None)
    queues = [list(_computations(name, rank, row, ranks)) for rank, row in enumerate(actions)]
    last = ranks * chunks - 1
    done: dict[tuple[str, int, int], int] = {}
    clock, held, peaks = [0] * ranks, [0] * ranks, [0] * ranks
    while any(queues):
        before = sum(map(len, queues))
        for rank, queue in enumerate(queues):
            while queue and all(_needs(*one, last) in {None, *done} for one in queue[0]):
                together = queue.pop(0)
                needs = [_needs(*one, last) for one in together]
                clock[rank] = max(clock[rank], *(done[need] for need in needs if need), 0)
                for kind, stage, batch in together:
                    clock[rank] += {"F": 1, "B": 2, "I": 1, "W": 1}[kind]
                    done["B" if kind == "I" else kind, stage, batch] = clock[rank]
                    held[rank] += {"F": 1, "B": -1, "I": 0, "W": -1}[kind]
                    peaks[rank] = max(peaks[rank], held[rank])
        assert sum(map(len, queues)) < before, "the schedule waits for itself"
    return max(clock), [peak / chunks for peak in peaks]


def _needs(kind: str, stage: int, batch: int, last: int) -> tuple[str, int, int] | None:
    if kind == "F":
        return ("F", stage - 1, batch) if stage else None
    if kind == "W":
        return "B", stage, batch
    return ("B", stage + 1, batch) if stage < last else ("F", stage, batch)


def _computations(
    name: str, rank: int, row: list[Any], ranks: int
) -> Iterator[list[tuple[str, int, int]]]:
    """Yield the computations of one rank, those that run as one together.

    The visualizer lists the forward passes of 1F1B's last rank one too high; the runtime is right.
    """
    letters = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
    shift = 1 if name == "1F1B" and rank == ranks - 1 else 0
    for action in row:
        if action is None:
            continue
        found = []
        for one in getattr(action, "sub_actions", None) or [action]:
            letter = letters.get(one.computation_type.name)
            if letter:
                off = shift if letter == "F" else 0
                found.append((letter, one.stage_index, one.microbatch_index - off))
        if found:
            yield found


@pytest.mark.unit
@pytest.mark.parametrize(
    ("schedule", "chunks", "percent"),
    [
        ("GPipe", 1, 27.3),
        ("1F1B", 1, 27.3),
        ("Interleaved1F1B", 2, 15.8),
        ("LoopedBFS", 2, 15.8),
        ("InterleavedZeroBubble", 2, 5.9),
        ("ZBVZeroBubble", 2, 5.9),
        ("DualPipeV", 2, 11.1),
    ],
)
def test_four_stages_and_eight_micro_batches(
    schedule: Schedule, chunks: int, percent: float
) -> None:
    assert 100 * bubble_fraction(schedule, 4, 8, chunks) == pytest.approx(percent, abs=0.05)


@pytest.mark.unit
def test_the_textbook_formulas() -> None:
    """(p - 1) / (m + p - 1), and with v chunks ((p - 1) / v) / (m + (p - 1) / v)."""
    assert bubble_fraction("1F1B", 5, 12) == pytest.approx(4 / 16)
    assert bubble_fraction("Interleaved1F1B", 5, 10, 2) == pytest.approx(2 / 12)


@pytest.mark.unit
def test_one_stage_has_no_bubble() -> None:
    for schedule in SCHEDULES:
        assert bubble_fraction(schedule, 1, 3) == 0


@pytest.mark.unit
@pytest.mark.parametrize(
    ("case", "words"),
    [
        (("1F1B", 4, 3, 1), "at least 4"),
        (("DualPipeV", 4, 7, 2), "at least 8"),
        (("1F1B", 4, 8, 2), "virtualStages 1"),
        (("ZBVZeroBubble", 4, 8, 3), "virtualStages 2"),
        (("Interleaved1F1B", 4, 8, 1), "virtualStages 2"),
        (("Interleaved1F1B", 4, 9, 2), "use 8"),
    ],
)
def test_what_torch_refuses_is_refused_with_the_nearest_choice(
    case: tuple[Schedule, int, int, int], words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        idle_units(*case)
