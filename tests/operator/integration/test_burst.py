"""Jobs that are submitted at once start one after the other, each with few writes."""

from __future__ import annotations

import asyncio
import statistics

import pytest

from llmtrain_devcluster.api import Object
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import OPERATOR_USER
from llmtrain_devcluster.scripted_node.node import PodScript
from tests.support.operator_harness.harness import OperatorHarness, OperatorProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

JOBS, PODS = 40, 2
JOB = {
    "workers": {"nodes": PODS, "gpusPerNode": 1, "command": ["train"]},
    "parallelism": {"tensor": 1, "data": PODS},
}


def pod_creation(write: Object) -> str:
    """Return the job whose pod is created, or "" for another write."""
    created = write["verb"] == "create" and write["objectRef"]["resource"] == "pods"
    if not created or "dryRun=" in write["requestURI"]:
        return ""
    return str(write["objectRef"]["name"]).rsplit("-", 2)[0]


def status_write(write: Object) -> str:
    """Return the job whose status is written, or "" for another write."""
    reference = write["objectRef"]
    is_status = reference["resource"] == "llmtrainingjobs" and write["verb"] == "patch"
    return str(reference["name"]) if is_status else ""


async def test_the_first_jobs_start_before_the_last_are_placed(
    installed: ControlPlane, operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes(*[{} for _ in range(JOBS)], gpus=PODS)
    harness.nodes.default = PodScript(exit_after=None)
    names = [f"burst-{index}" for index in range(JOBS)]
    await asyncio.gather(*(harness.submit(name, **JOB) for name in names))
    for name in names:
        await harness.phase(name, "Running", seconds=300)
    writes = [
        write
        for write in installed.writes(OPERATOR_USER)
        if write["objectRef"].get("namespace") == harness.namespace
    ]
    first_pod = next(i for i, write in enumerate(writes) if pod_creation(write))
    written = {name for write in writes[:first_pod] if (name := status_write(write))}
    assert len(written) <= JOBS / 2, "other jobs do not advance before the first pod"
    statuses = []
    for name in names:
        created = next(i for i, write in enumerate(writes) if pod_creation(write) == name)
        statuses.append(sum(status_write(write) == name for write in writes[:created]))
    print(f"{len(written)} of {JOBS} jobs placed before the first pod; status writes {statuses}")
    assert statistics.median(statuses) == 1, "acceptance and placement are one write"
