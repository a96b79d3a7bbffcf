"""The topology label of a real node changes under a running job."""

from __future__ import annotations

import secrets

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.scripted_node.node import PodScript, ScriptedNodes
from tests.support.operator_harness.advice import CaseBench
from tests.support.operator_harness.harness import OperatorProcess, condition

pytestmark = pytest.mark.cluster


async def test_a_real_node_is_relabelled(
    operator: OperatorProcess, api: Api, scripted_nodes: ScriptedNodes
) -> None:
    scripted_nodes.default = PodScript(exit_after=None)
    tag = secrets.token_hex(3)
    harness = CaseBench(api, f"relabel-{tag}", scripted_nodes, tag)
    label = f"example.com/{tag}"
    await harness.enter()
    try:
        names = await harness.add_nodes({label: "a"}, {label: "a"})
        await harness.fabric(rack=label)
        await harness.submit("job", topology={"fabric": harness.tag})
        before = await harness.phase("job", "Running")
        await harness.node(names[1], {"metadata": {"labels": {label: "b"}}})
        degraded = await harness.holds("job", "NetworkDegraded")
        found = condition(degraded, "NetworkDegraded")
        assert found["reason"] == "TopologyChanged" and f"{names[1]} in b" in found["message"]
        assert degraded["status"]["placement"] == before["status"]["placement"]
        assert degraded["status"]["phase"] == "Running"
        await harness.node(names[1], {"metadata": {"labels": {label: "a"}}})
        after = await harness.reason("job", "NetworkDegraded", "TopologyAsPlaced")
        assert after["status"].get("attempt", 0) == 0 and after["status"]["restarts"] == 0
    finally:
        await harness.leave()
