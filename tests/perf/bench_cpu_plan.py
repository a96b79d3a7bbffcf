"""Predicted against measured CPU time of a training step, after a calibration of this machine.

The calibration runs small models on one rank and on two; what is predicted here has four or eight
ranks and models that it never saw. CPU seconds of all ranks are compared, not wall time: other load
hardly changes them. Samples of both alternate, so that the same load meets both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest
import torch

from llmtrain_core.layout import Layout
from llmtrain_core.plan.processor import processor_step
from llmtrain_trainer.calibrate import Probe, Sample, fitted, sample_round, sample_steps

pytestmark = [pytest.mark.perf, pytest.mark.timeout(1200)]

BOUND = 0.20
ROUNDS = 3


def _probe(layout: Layout, hidden: int, layers: int, batch: int, micro_batch: int) -> Probe:
    micro_batches = batch // (layout.data * micro_batch)
    return Probe(layers, hidden, 2048, 128, layout, micro_batches, micro_batch)


FOUR = (
    Layout(tensor=2, data=2), Layout(tensor=2, pipeline=2), Layout(pipeline=2, data=2),
    Layout(data=4), Layout(pipeline=4),
)  # fmt: skip
EIGHT = (Layout(tensor=2, pipeline=2, data=2), Layout(pipeline=2, data=4))
GROUPS = (
    tuple(_probe(layout, 128, 4, 16, 2) for layout in FOUR),
    tuple(_probe(layout, 128, 4, 16, 2) for layout in EIGHT),
    tuple(_probe(layout, 192, 6, 16, 4) for layout in FOUR[:3]),
)
"""The model of `examples/sotu-3d.yaml`, and one of three times its size."""


def test_cpu_time_of_layouts_that_were_not_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    calibrations, samples = [], []
    wall = cpu = 0.0
    for _ in range(ROUNDS):
        before, start = os.times(), time.perf_counter()
        calibrations.append(sample_round(tmp_path))
        after, wall = os.times(), wall + time.perf_counter() - start
        cpu += sum(after[:4]) - sum(before[:4])
        samples.append(_sample(GROUPS, tmp_path))
    processor = fitted(calibrations)
    print(
        f"\ncalibrated {processor.cores} cores in {cpu:.0f} CPU seconds, {wall:.0f} s of wall time"
    )
    print(f"{'':<24}{'CPU SECONDS':>18}{'':>8}{'WALL SECONDS':>18}")
    print(
        f"{'MODEL':<8}{'LAYOUT':<16}{'PLANNED':>9}{'MEASURED':>9}{'ERROR':>8}"
        f"{'PLANNED':>9}{'MEASURED':>9}"
    )
    errors = []
    for probe in samples[0]:
        cpu = median(one[probe].cpu for one in samples)
        wall = median(one[probe].wall for one in samples)
        planned = processor_step(probe.recipe, processor)
        errors.append(planned.cpu_seconds / cpu - 1)
        print(
            f"{probe.layers} x {probe.hidden:<4}{probe.layout!s:<16}{planned.cpu_seconds:>9.3f}"
            f"{cpu:>9.3f}{errors[-1]:>+8.1%}{planned.wall_seconds:>9.3f}{wall:>9.3f}"
        )
    assert len(errors) >= 6
    assert max(map(abs, errors)) <= BOUND


def _sample(groups: Sequence[Sequence[Probe]], folder: Path) -> dict[Probe, Sample]:
    return {probe: s for group in groups for probe, s in sample_steps(group, folder).items()}
