"""A namespace with restricted Pod Security accepts the pods of a job."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtrain_devcluster.api import Api, ApiStatusError
from llmtrain_operator.manifests.job_resources import digest, job_resources
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.manifests.pod import make_pod
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.jobs import EVERYTHING, IDENTITY, NODES, checked_job

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("spec", "fixed_user"),
    [({}, True), (EVERYTHING, True), ({}, False)],
    ids=["plain", "everything", "no user"],
)
async def test_a_restricted_namespace_accepts_the_objects(
    api: Api, namespace: str, spec: dict[str, Any], fixed_user: bool
) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await api.patch("namespaces", namespace, {"metadata": {"labels": labels}})
    raw = job_object("job", namespace, **json.loads(json.dumps(spec)))
    raw["metadata"]["uid"] = IDENTITY.uid
    identity = JobIdentity.of(raw)
    if spec:
        high = {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "high"},
            "value": 7,
        }
        await api.apply(high)
    for resource, body in job_resources(raw, identity, 0, "ab" * 32):
        stored = await api.request("POST", resource.path(namespace), body=body)
        assert digest(resource, stored) == digest(resource, body), "a default would be an edit"
    job = checked_job(**json.loads(json.dumps(spec)))
    body = make_pod(job, identity, 0, 0, NODES, fixed_user=fixed_user)
    made = await api.create("pods", body, namespace)
    assert made["spec"]["securityContext"]["runAsNonRoot"] is True
    assert ("runAsUser" in made["spec"]["securityContext"]) is fixed_user
    await api.delete("pods", "job-0-0", namespace, grace_seconds=0, missing_ok=True)
    body["spec"]["containers"][0]["securityContext"] = {}
    with pytest.raises(ApiStatusError, match="violates PodSecurity"):
        await api.create("pods", body, namespace)
