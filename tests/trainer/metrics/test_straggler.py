"""Waiting separated from transfer, on real ranks of which one is slow on purpose."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.launcher.status_tracker import StatusTracker

pytestmark = [pytest.mark.torch, pytest.mark.serial, pytest.mark.timeout(300)]

SLOW, LATE = 1, 1.0


def test_the_others_wait_for_a_slow_rank(
    run_trainers: Callable[..., list[Any]],
    job_spec: Callable[..., dict[str, Any]],
    shards: Any,
    tmp_path: Path,
) -> None:
    import torch.distributed as dist

    ready = tmp_path / "ready"

    def body(trainer: Any) -> Any:
        trainer.take_step()
        passes = trainer.forward_backward.train

        def train(*batch: Any) -> Any:
            if dist.get_rank() != SLOW:
                ready.touch()
            else:  # late by the other's clock, however busy the machine is
                while not ready.exists():
                    time.sleep(0.01)
                time.sleep(LATE)
            return passes(*batch)

        trainer.forward_backward.train = train
        return trainer.take_step(sampled=True)

    reports = run_trainers(job_spec(tensor=2), shards, body)
    for report in reports:
        for sample in report.collectives:
            assert len(sample.waits) == len(sample.seconds) == sample.count
            assert all(0 <= w <= s for w, s in zip(sample.waits, sample.seconds, strict=True))
    first = [[sample.waits[0] for sample in report.collectives] for report in reports]
    later = max(quick - slow for quick, slow in zip(first[1 - SLOW], first[SLOW], strict=True))
    assert later > LATE / 2
    scores = [report.straggler_score for report in reports]
    assert max(scores) == 1.0
    assert min(scores) == scores[SLOW]

    tracker = StatusTracker((0, 1), attempt=0)
    for rank in (0, 1):
        tracker.on_report(rank, reports[rank])
    page = tracker.metrics.exposition().decode()
    assert f'llmtrain_straggler_score{{gpu="1"}} {scores[SLOW]}' in page
    assert 'llmtrain_collective_wait_seconds_count{group="tp",payload="tensor"}' in page
    spent = {
        sample.op: sum(sample.seconds) - sum(sample.waits)
        for sample in reports[1].collectives
        if sample.group == "tp"
    }
    found = [line for line in page.splitlines() if line.startswith("llmtrain_bus_bandwidth")]
    assert all(seconds > 0 for seconds in spent.values())
    assert len([line for line in found if 'group="tp"' in line]) == len(spent)
