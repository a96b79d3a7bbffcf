"""60 jobs of mixed size and priority on 32 nodes; every revision of every job and pod is checked.

This is a small version of bench_queue_trace.py and bench_foreign_pods.py for every run of the
tests. It checks what must hold at each revision, and no figure that depends on the load of the
machine. Wait times are checked by bench_queue_trace.py, and by core/queueing/test_order.py with
simulated time.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import ScriptedNodes
from tests.support.operator_harness.foreign_pods import (
    LATE_SECONDS,
    ForeignPods,
    Pressure,
    check_refusals,
    refused_seconds,
)
from tests.support.operator_harness.harness import OperatorHarness, OperatorProcess
from tests.support.operator_harness.queue_trace import (
    PATIENT,
    PRIORITY_NAMES,
    Trace,
    check_trace,
    play,
)

pytestmark = pytest.mark.cluster
CLASSES = "scheduling.k8s.io/v1/priorityclasses"
TRACE = Trace(
    seed=20261126,
    jobs=60,
    nodes=32,
    per_leaf=8,
    lengths=(3, 8),
    span=12,
    sizes={1: 45, 2: 25, 4: 18, 8: 9, 16: 3},
).under_pressure()
PRESSURE = Pressure(seed=20261130, per_second=2.0, seconds=(1.5, 4.5))


@pytest.fixture
async def classes(api: Api) -> AsyncIterator[None]:
    for value, name in PRIORITY_NAMES.items():
        await api.create(CLASSES, {"metadata": {"name": name}, "value": value})
    yield
    for name in PRIORITY_NAMES.values():
        await api.delete(CLASSES, name, missing_ok=True)


@pytest.mark.timeout(900)
async def test_sixty_jobs_beside_foreign_pods(
    installed: ControlPlane,
    api: Api,
    namespace: str,
    scripted_nodes: ScriptedNodes,
    classes: None,
    tmp_path: Path,
) -> None:
    harness = OperatorHarness(api, namespace, scripted_nodes, secrets.token_hex(3))
    foreign = ForeignPods(harness, PRESSURE)
    operator = OperatorProcess(installed, tmp_path, *PATIENT)
    try:
        played = await play(TRACE, harness, operator, tmp_path, 600, foreign)
        await harness.clear()
    finally:
        operator.stop()
    print(f"\n{TRACE.jobs} jobs in {played.seconds:.0f} s beside {foreign.text()}")
    assert foreign.done["resized"], "no foreign pod was resized"
    check_trace(TRACE, played.account, foreign_pods=True)
    check_refusals(played)
    longest = max(refused_seconds(played.revisions).values())
    assert longest <= 10 * LATE_SECONDS, "a pod stayed pinned to a node where it could not start"
    assert {attempt.job for attempt in played.account.attempts} == {
        entry.name for entry in TRACE.entries()
    }, "a job was never placed"
