"""Benchmark of pinned pods: 300 jobs on 128 nodes, beside foreign pods that come and go.

The operator pins each pod to a node. It sees foreign pods late, so kube-scheduler may refuse a pod.
A watcher outside the operator records for how long each pod is `PodScheduled=False, Unschedulable`.
At most 1 % of the pods may be so for longer than 5 s. No refusal may count as a failure of a job.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.operator_harness import trace_cluster
from tests.support.operator_harness.foreign_pods import (
    LATE_SECONDS,
    ForeignPods,
    Pressure,
    check_refusals,
)
from tests.support.operator_harness.harness import OperatorHarness, OperatorProcess
from tests.support.operator_harness.queue_trace import FULL_TRACE, PATIENT, check_trace, play

pytestmark = pytest.mark.cluster
TRACE = FULL_TRACE.under_pressure()
PRESSURE = Pressure(seed=20261130, per_second=4.0)
own_cluster = trace_cluster.own_cluster
harness = trace_cluster.harness


@pytest.mark.timeout(1500)
async def test_three_hundred_jobs_beside_foreign_pods(
    own_cluster: ControlPlane, harness: OperatorHarness, tmp_path: Path
) -> None:
    foreign = ForeignPods(harness, PRESSURE)
    operator = OperatorProcess(own_cluster, tmp_path, *PATIENT)
    try:
        played = await play(TRACE, harness, operator, tmp_path, 1200, foreign)
    finally:
        operator.kill()
    print(f"\n{TRACE.jobs} jobs in {played.seconds:.0f} s beside {foreign.text()}")
    assert foreign.done["resized"], "no foreign pod was resized"
    check_trace(TRACE, played.account, foreign_pods=True)
    share = check_refusals(played)
    assert share <= 0.01, f"too many pods were refused for longer than {LATE_SECONDS:.0f} s"
