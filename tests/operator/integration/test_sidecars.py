"""A container that is added to the pods at admission, and never ends, does not keep the job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from llmtrain_devcluster.scripted_node.node import PodScript, named
from tests.support.operator_harness.harness import (
    OperatorHarness,
    OperatorProcess,
    condition,
    status_of,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

POLICIES = "admissionregistration.k8s.io/v1/mutatingadmissionpolicies"
BINDINGS = "admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings"
ADD_CONTAINER = """
[JSONPatch{op: "add", path: "/spec/containers/-",
           value: Object.spec.containers{name: "mesh", image: "example.com/mesh:1"}}]
"""


@pytest.fixture
async def mesh(harness: OperatorHarness) -> AsyncIterator[str]:
    """Add a container to each pod of the namespace; yield its name."""
    name = f"mesh-{harness.tag}"
    policy = {
        "metadata": {"name": name},
        "spec": {
            "reinvocationPolicy": "Never",
            "matchConstraints": {
                "namespaceSelector": {
                    "matchLabels": {"kubernetes.io/metadata.name": harness.namespace}
                },
                "resourceRules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["pods"],
                    }
                ],
            },
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": ADD_CONTAINER}}],
        },
    }
    await harness.api.create(POLICIES, policy)
    await harness.api.create(BINDINGS, {"metadata": {"name": name}, "spec": {"policyName": name}})
    probe = {
        "metadata": {"name": "probe"},
        "spec": {"containers": [{"name": "main", "image": "example.com/x:1"}]},
    }
    path, dry = f"/api/v1/namespaces/{harness.namespace}/pods", {"dryRun": "All"}
    while True:  # until the API server applies the policy
        made = await harness.api.request("POST", path, query=dry, body=probe)
        if len(made["spec"]["containers"]) == 2:
            break
        await asyncio.sleep(0.1)
    yield "mesh"
    await harness.api.delete(BINDINGS, name)
    await harness.api.delete(POLICIES, name)


async def test_the_trainer_decides_beside_an_injected_sidecar(
    operator: OperatorProcess, harness: OperatorHarness, mesh: str
) -> None:
    await harness.add_nodes({}, {})
    error = {"reason": "CorpusMissing", "message": "no text", "rank": 0, "exitCode": 2}
    harness.nodes.default = PodScript(exit_after=0.3, sidecars_run=True)
    harness.nodes.script(
        named("bad-.*"),
        PodScript(
            exit_after=0.3,
            exit_code=2,
            termination_message=json.dumps({"error": error}),
            sidecars_run=True,
        ),
    )
    await harness.submit("good")
    good = await harness.phase("good", "Succeeded", "Failed")
    assert condition(good, "Succeeded").get("status") == "True"
    await harness.pod_count(0)
    await harness.submit("bad")
    bad = await harness.phase("bad", "Failed")
    assert condition(bad, "Failed")["reason"] == "CorpusMissing"
    assert status_of(bad)["failures"][0]["exitCode"] == 2
    await harness.pod_count(0)
