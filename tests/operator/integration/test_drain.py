"""Real drains by kubectl: a job moves off the node, and the drain ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from llmtrain_core.api import labels
from llmtrain_devcluster.api import ApiStatusError, Object
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import PodScript
from llmtrain_kind.binaries import kubectl
from tests.support.operator_harness.harness import (
    DISRUPTION_BUDGETS,
    JOBS,
    OperatorHarness,
    OperatorProcess,
    condition,
    reporting,
    status_of,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

DRAINS = 20
DRAIN = ("drain", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s")
REFUSED = "disruption budget"


@pytest.fixture
def kubeconfig(installed: ControlPlane, tmp_path: Path) -> Path:
    return installed.kubeconfig("admin", tmp_path / "kubeconfig")


async def run_kubectl(kubeconfig: Path, *arguments: str) -> tuple[int, str]:
    """Run kubectl; return its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        kubectl(),
        f"--kubeconfig={kubeconfig}",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def nodes_of(job: Object) -> list[str]:
    return [n for block in status_of(job)["placement"]["blocks"] for n in block["nodes"]]


@contextlib.asynccontextmanager
async def saving(harness: OperatorHarness, names: Sequence[str]) -> AsyncIterator[None]:
    """Let the first attempts of jobs report a newer checkpoint again and again."""
    steps = {"step": 20, "lastCheckpointStep": 20}
    report: Object = {"phase": "training", "totalSteps": 100_000, **steps}

    async def save() -> None:
        while True:
            await asyncio.sleep(0.2)
            for key in steps:
                report[key] += 10

    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            head = await harness.api.get("pods", f"{name}-0-0", harness.namespace)
            await stack.enter_async_context(reporting(head, report))
        task = asyncio.create_task(save())
        stack.callback(task.cancel)
        yield


async def budget_of(harness: OperatorHarness, name: str, permitted: int = 0) -> Object:
    """Wait until the disruption controller has computed a budget.

    It looks for new kinds every 30 s, so it may not know jobs yet. It then tries again only when
    the budget or its pods change.
    """
    seconds = 0
    while True:
        seconds += 1
        found = await harness.api.wait_for(
            DISRUPTION_BUDGETS, name, lambda budget: budget is not None, harness.namespace
        )
        status = found.get("status", {})
        seen = status.get("observedGeneration") == found["metadata"]["generation"]
        if seen and status.get("disruptionsAllowed") == permitted:
            return found
        assert seconds < 300, found
        await asyncio.sleep(0.2 if seconds < 25 else 1)
        if seconds % 10 == 0:
            again = {"metadata": {"annotations": {"example.com/tried": str(seconds)}}}
            await harness.api.patch(DISRUPTION_BUDGETS, name, again, harness.namespace)


async def evict(harness: OperatorHarness, pod: str) -> int:
    """Ask the eviction API, as kubectl does; return the status code."""
    path = f"/api/v1/namespaces/{harness.namespace}/pods/{pod}/eviction"
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    try:
        await harness.api.request("POST", path, body=body)
    except ApiStatusError as error:
        return error.status
    return 201


async def test_twenty_drains_end_and_move_the_jobs(
    operator: OperatorProcess, harness: OperatorHarness, kubeconfig: Path
) -> None:
    await harness.add_nodes(*({} for _ in range(3 * DRAINS)))
    harness.nodes.default = PodScript(exit_after=None)
    names = [f"job-{index}" for index in range(DRAINS)]
    await asyncio.gather(*(harness.submit(name) for name in names))
    jobs = [await harness.runs(name, 0, 120) for name in names]
    drained = [nodes_of(job)[index % 2] for index, job in enumerate(jobs)]
    for name in names:
        await budget_of(harness, name)
    async with saving(harness, names):
        drains = await asyncio.gather(*(run_kubectl(kubeconfig, *DRAIN, node) for node in drained))
    assert [code for code, _ in drains] == [0] * DRAINS, [text for _, text in drains]
    assert any(REFUSED in text for _, text in drains)
    for name in names:
        status = status_of(await harness.runs(name, 1, 120))
        assert status["restarts"] == 0 and not status.get("failures"), name
        assert "move" not in status
    placed = {node for name in names for node in nodes_of(await harness.job(name))}
    assert len(placed) == 2 * DRAINS and placed.isdisjoint(drained)
    for pod in await harness.pods():
        assert pod["spec"]["nodeName"] not in drained


async def test_a_drain_ends_even_if_no_other_node_is_free(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    node, _ = await harness.add_nodes({}, {})
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("stuck")
    await harness.runs("stuck", 0)
    await budget_of(harness, "stuck")
    await harness.api.patch("nodes", node, {"spec": {"unschedulable": True}})
    [pod] = [p for p in await harness.pods() if p["spec"]["nodeName"] == node]
    name = pod["metadata"]["name"]
    shown = await harness.reason("stuck", "Running", "NodeDraining")
    assert node in condition(shown, "Running")["message"]
    assert await evict(harness, name) == 429
    # The clock of the drain is in the status: let it end now.
    over = {"status": {"move": {"deadline": "2026-01-01T00:00:00Z"}}}
    await harness.api.patch(JOBS, "stuck", over, harness.namespace, subresource="status")
    await harness.api.wait_for(
        DISRUPTION_BUDGETS, "stuck", lambda found: found is None, harness.namespace
    )
    assert (await harness.pods(f"{labels.ATTEMPT}=0"))[0]["status"]["phase"] == "Running"
    assert await evict(harness, name) == 201
    await harness.api.wait_for("pods", name, lambda found: found is None, harness.namespace)
    await harness.api.patch("nodes", node, {"spec": {"unschedulable": False}})
    await harness.runs("stuck", 1)
    await budget_of(harness, "stuck")


async def test_budgets_of_others_compute_and_take_precedence(
    operator: OperatorProcess, harness: OperatorHarness, kubeconfig: Path
) -> None:
    await harness.add_nodes({}, {})
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("job")
    await harness.runs("job", 0)
    mine = await budget_of(harness, "job")
    await harness.api.delete(DISRUPTION_BUDGETS, "job", harness.namespace)
    uid = mine["metadata"]["uid"]
    await harness.api.wait_for(
        DISRUPTION_BUDGETS,
        "job",
        lambda b: b is not None and b["metadata"]["uid"] != uid,
        harness.namespace,
    )

    theirs = {
        "metadata": {"name": "theirs"},
        "spec": {"maxUnavailable": "50%", "selector": {"matchLabels": {labels.JOB_NAME: "job"}}},
    }
    await harness.api.create(DISRUPTION_BUDGETS, theirs, harness.namespace)
    await harness.api.wait_for(
        DISRUPTION_BUDGETS, "job", lambda found: found is None, harness.namespace
    )
    counted = await budget_of(harness, "theirs", permitted=1)
    assert counted["status"]["expectedPods"] == 2
    await harness.api.delete(DISRUPTION_BUDGETS, "theirs", harness.namespace)
    await budget_of(harness, "job")

    code, text = await run_kubectl(
        kubeconfig, "scale", "ltj/job", "--replicas=3", "--namespace", harness.namespace
    )
    assert code == 1 and "immutable, create a new job instead: spec.workers" in text
    path = f"/apis/llmtrain.dev/v1alpha1/namespaces/{harness.namespace}/llmtrainingjobs/job/scale"
    scale: Object = await harness.api.request("GET", path)
    [owner] = mine["metadata"]["ownerReferences"]
    assert scale["spec"]["replicas"] == 2
    assert scale["status"] == {"replicas": 2, "selector": f"{labels.JOB_UID}={owner['uid']}"}
    harness.nodes.end(harness.namespace, "job-0-0", 0)
    harness.nodes.end(harness.namespace, "job-0-1", 0)
    await harness.phase("job", "Succeeded")
    await harness.api.wait_for(
        DISRUPTION_BUDGETS, "job", lambda found: found is None, harness.namespace
    )
