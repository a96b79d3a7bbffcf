"""A job spans two racks until one becomes free: better placement, request, checkpoint, move."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from llmtrain_devcluster.api import Object
from tests.support.operator_harness.advice import FABRICS
from tests.support.operator_harness.harness import (
    ENDLESS,
    OperatorHarness,
    OperatorProcess,
    condition,
    foreign_pod,
    reporting,
    status_of,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture
async def racks(harness: OperatorHarness) -> AsyncIterator[tuple[str, str]]:
    """Yield a Fabric with oversubscribed racks: its name and the label of a rack."""
    label = f"example.com/rack-{harness.tag}"
    levels = [
        {"name": "rack", "nodeLabel": label, "oversubscription": 8},
        {"name": "node", "nodeLabel": "kubernetes.io/hostname"},
    ]
    body = {
        "apiVersion": "llmtrain.dev/v1alpha1",
        "kind": "Fabric",
        "metadata": {"name": harness.tag},
        "spec": {"levels": levels},
    }
    await harness.api.create(FABRICS, body)
    yield harness.tag, label
    await harness.api.delete(FABRICS, harness.tag, missing_ok=True)


def nodes_of(job: Object) -> list[str]:
    return [n for block in status_of(job)["placement"]["blocks"] for n in block["nodes"]]


async def test_a_job_moves_on_request_after_a_newer_checkpoint(
    operator: OperatorProcess, harness: OperatorHarness, racks: tuple[str, str]
) -> None:
    fabric, label = racks
    names = await harness.add_nodes(*({label: rack} for rack in ("a", "a", "b", "b")))
    harness.nodes.default = ENDLESS
    # No jobs: the operator searches a better placement for one running job at a time.
    for name, node in (("guest", names[1]), ("tenant", names[3])):
        await harness.api.create("pods", foreign_pod(name, node), harness.namespace)
    await operator.shows('llmtrain_operator_nodes{state="free"} 2.0')
    await harness.submit("job", topology={"fabric": fabric})
    apart = await harness.phase("job", "Running")
    assert status_of(apart)["placementSummary"] == "2 nodes · 2 rack"
    await harness.api.delete("pods", "guest", harness.namespace, grace_seconds=0)
    hinted = await harness.wait("job", lambda j: "betterPlacement" in status_of(j), 300)
    hint = status_of(hinted)["betterPlacement"]
    assert hint["attempt"] == 0 and hint["gain"] > 1.1 and hint["summary"] == "2 nodes · 1 rack"

    head = await harness.api.get("pods", "job-0-0", harness.namespace)
    report = {
        "phase": "training",
        "attempt": 0,
        "step": 20,
        "totalSteps": 100,
        "stepSeconds": 0.5,
        "lastCheckpointStep": 20,
    }

    def saved(step: int):  # type: ignore[no-untyped-def]
        return lambda j: status_of(j).get("progress", {}).get("lastCheckpointStep") == step

    async with reporting(head, report):
        await harness.wait("job", saved(20))
        report |= {"step": 30, "lastCheckpointStep": 30}
        unasked = await harness.wait("job", saved(30))
        assert nodes_of(unasked) == nodes_of(apart), "a newer checkpoint alone moves no job"
        await harness.patch("job", {"metadata": {"annotations": {"llmtrain.dev/replace": "0"}}})
        asked = await harness.wait("job", lambda j: "move" in status_of(j))
        assert status_of(asked)["move"] == {"attempt": 0, "afterCheckpoint": 30}
        assert nodes_of(asked) == nodes_of(apart), "the checkpoint is older than the request"
        report |= {"step": 41, "lastCheckpointStep": 40}
        moved = await harness.runs("job", attempt=1, seconds=300)
    assert set(nodes_of(moved)) == set(names[:2])
    status = status_of(moved)
    assert status["restarts"] == 0 and "move" not in status and "betterPlacement" not in status
    assert condition(moved, "Failed") == {} and not status.get("failures")
    pods = await harness.pod_count(3)
    assert {p["spec"]["nodeName"] for p in pods} >= set(names[:2])
