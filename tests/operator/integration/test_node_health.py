"""Marks of node agents on real Node objects: a new job avoids the node, a running one leaves it."""

from __future__ import annotations

import pytest

from llmtrain_devcluster.api import Object
from tests.support.operator_harness.harness import (
    ENDLESS,
    OperatorHarness,
    OperatorProcess,
    condition,
    mark_node,
    reporting,
    status_of,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SPOT = {"key": "aws-node-termination-handler/spot-itn", "value": "1", "effect": "NoSchedule"}


def nodes_of(job: Object) -> list[str]:
    return [n for block in status_of(job)["placement"]["blocks"] for n in block["nodes"]]


async def test_placement_avoids_a_node_whose_condition_turned_bad(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    first, second, third = await harness.add_nodes({}, {}, {})
    harness.nodes.default = ENDLESS
    await mark_node(harness.api, first, "XIDErrors", "True", "XIDErrors79")
    await operator.shows('llmtrain_operator_nodes{state="quarantined"} 1.0')
    await harness.submit("job")
    running = await harness.phase("job", "Running")
    assert sorted(nodes_of(running)) == [second, third]
    await harness.submit("next", workers={"nodes": 1})
    await harness.wait(
        "next",
        lambda j: "1 avoided for aks/XIDErrors" in condition(j, "Placed").get("message", ""),
    )
    await mark_node(harness.api, first, "XIDErrors", "False", "NoXIDErrors")
    await harness.phase("next", "Running")


async def test_a_spot_notice_moves_a_job_without_a_counted_restart(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    names = await harness.add_nodes({}, {}, {})
    harness.nodes.default = ENDLESS
    await harness.submit("job")
    before = await harness.runs("job", 0)
    doomed = nodes_of(before)[1]
    head = await harness.api.get("pods", "job-0-0", harness.namespace)
    report: Object = {"phase": "training", "step": 20, "totalSteps": 90, "lastCheckpointStep": 20}
    async with reporting(head, report):
        await harness.wait(
            "job", lambda j: status_of(j).get("progress", {}).get("lastCheckpointStep") == 20
        )
        await harness.api.patch("nodes", doomed, {"spec": {"taints": [SPOT]}})
        leaving = await harness.reason("job", "Running", "NodeDraining")
        assert condition(leaving, "Running")["message"].startswith(
            f"{doomed} (aws/spot-interruption: taint {SPOT['key']}=1:NoSchedule): the job moves"
        )
        assert nodes_of(leaving) == nodes_of(before)
        report |= {"step": 31, "lastCheckpointStep": 30}
        moved = await harness.runs("job", 1)
    assert sorted(nodes_of(moved)) == sorted({*names} - {doomed})
    status = status_of(moved)
    assert status["restarts"] == 0 and not status.get("failures") and "move" not in status
