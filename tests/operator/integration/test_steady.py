"""The operator writes nothing in a steady state."""

from __future__ import annotations

import asyncio
import time

import pytest

from llmtrain_devcluster.api import Object
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import OPERATOR_USER
from llmtrain_devcluster.scripted_node.node import PodScript, named
from tests.support.operator_harness.harness import (
    JOBS,
    OperatorHarness,
    OperatorProcess,
    is_renewal,
    status_of,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

FINISHED, RUNNING = 12, 8
SECONDS = 35
"""More than twice the longest period of the scheduler, 15 s."""
SMALL = {
    "workers": {"nodes": 1, "gpusPerNode": 1, "command": ["train"]},
    "parallelism": {"tensor": 1, "data": 1},
}


async def phases(harness: OperatorHarness) -> dict[str, int]:
    found: dict[str, int] = {}
    for job in await harness.api.list(JOBS, harness.namespace):
        phase = status_of(job).get("phase", "")
        found[phase] = found.get(phase, 0) + 1
    return found


async def settled(harness: OperatorHarness, **wanted: int) -> None:
    deadline = time.monotonic() + 90
    while await phases(harness) != wanted:
        assert time.monotonic() < deadline, await phases(harness)
        await asyncio.sleep(0.5)


async def writes_after_events(cluster: ControlPlane) -> list[Object]:
    """Return the writes after the Events of the last changes are created."""
    before = cluster.writes(OPERATOR_USER)
    for _ in range(20):
        await asyncio.sleep(3)
        now = cluster.writes(OPERATOR_USER)
        if all(map(is_renewal, now[len(before) :])):
            return now
        before = now
    raise AssertionError("the operator goes on writing")


async def test_no_write_without_a_change(
    installed: ControlPlane, operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes(*[{} for _ in range(4)], gpus=16)
    harness.nodes.script(named("done-.*"), PodScript(exit_after=0.2))
    harness.nodes.script(named("run-.*"), PodScript(exit_after=None))
    names = [f"done-{i}" for i in range(FINISHED)] + [f"run-{i}" for i in range(RUNNING)]
    for start in range(0, len(names), 10):
        await asyncio.gather(*(harness.submit(n, **dict(SMALL)) for n in names[start : start + 10]))
    await settled(harness, Succeeded=FINISHED, Running=RUNNING)
    before = await writes_after_events(installed)
    await asyncio.sleep(SECONDS)
    new = installed.writes(OPERATOR_USER)[len(before) :]
    leases = [e for e in new if is_renewal(e)]
    others = [e for e in new if not is_renewal(e)]
    shown = [(e["verb"], e["requestURI"]) for e in others]
    print(f"{SECONDS} s: {len(others)} writes, and {len(leases)} renewals of the lease")
    assert leases, "the audit log works"
    assert shown == []
    assert await phases(harness) == {"Succeeded": FINISHED, "Running": RUNNING}
    metrics = operator.metrics()
    assert f'llmtrain_operator_jobs{{phase="Running"}} {RUNNING}.0' in metrics
