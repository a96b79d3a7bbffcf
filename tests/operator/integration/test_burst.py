"""Jobs that are submitted at once start one after the other, each with few writes."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from llmtrain_devcluster.api import Object
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import OPERATOR_USER
from llmtrain_devcluster.scripted_node.node import PodScript
from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.kube.namespace_limits import START_TURN_SECONDS, STARTING_JOBS
from tests.support.operator_harness.harness import OperatorHarness, OperatorProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

JOBS, PODS = 40, 2
ACCEPTANCE_SECONDS = 1.0
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


def received(write: Object) -> datetime:
    """Return when the API server received a write."""
    return datetime.fromisoformat(write["requestReceivedTimestamp"])


async def test_the_first_jobs_start_before_the_last_are_placed(
    installed: ControlPlane, operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes(*[{} for _ in range(JOBS)], gpus=PODS)
    harness.nodes.default = PodScript(exit_after=None)
    names = [f"burst-{index}" for index in range(JOBS)]
    jobs = await asyncio.gather(*(harness.submit(name, **JOB) for name in names))
    submitted = {
        job["metadata"]["name"]: parse_time(job["metadata"]["creationTimestamp"]) for job in jobs
    }
    for name in names:
        await harness.phase(name, "Running", seconds=300)
    writes = [
        write
        for write in installed.writes(OPERATOR_USER)
        if write["objectRef"].get("namespace") == harness.namespace
    ]
    sent = [write["requestURI"] for write in writes if write["verb"] in ("create", "patch")]
    assert all("fieldValidation=Ignore" in uri for uri in sent), "no warnings that are not read"
    first_pod = next(i for i, write in enumerate(writes) if pod_creation(write))
    placed_before, one_write, statuses = [], [], {}
    for name in names:
        created = next(i for i, write in enumerate(writes) if pod_creation(write) == name)
        own = [i for i, write in enumerate(writes[:created]) if status_write(write) == name]
        statuses[name] = len(own)
        if own[-1] < first_pod:  # The last status before the pods has the placement.
            placed_before.append(own[-1])
        accepted = (received(writes[own[0]]) - submitted[name]).total_seconds()
        if accepted < ACCEPTANCE_SECONDS:
            one_write.append(name)
    print(f"{len(placed_before)} of {JOBS} jobs placed before the first pod; writes {statuses}")
    # On a loaded machine turns end before the first pod exists.
    waited = (received(writes[first_pod]) - received(writes[placed_before[0]])).total_seconds()
    turns = 2 + int(waited / START_TURN_SECONDS)
    assert len(placed_before) <= STARTING_JOBS * turns, "other jobs do not advance"
    # The first write waits a second for the scheduler.
    several = [name for name in one_write if statuses[name] > 1]
    assert len(several) <= len(one_write) / 2, "acceptance and placement are one write"
    assert max(statuses.values()) <= 3
