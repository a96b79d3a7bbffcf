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


POD_FIELDS: dict[str, Any] = {
    "workers": {
        "env": [
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
            {"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
        ],
        "envFrom": [{"prefix": "AWS_", "secretRef": {"name": "bucket"}}],
        "imagePullPolicy": "Always",
        "imagePullSecrets": [{"name": "registry"}],
        "serviceAccountName": "runner",
        "automountServiceAccountToken": True,
        "podLabels": {"team": "nlp"},
        "podAnnotations": {"k8s.v1.cni.cncf.io/networks": "rail-0, rail-1"},
        "terminationGracePeriodSeconds": 120,
        "resources": {"limits": {"hugepages-2Mi": "64Mi"}},
        "volumes": [
            {"name": "keys", "mountPath": "/keys", "secret": {"secretName": "keys"}},
            {
                "name": "identity",
                "mountPath": "/identity",
                "projected": {
                    "sources": [
                        {"serviceAccountToken": {"audience": "sts", "path": "token"}},
                        {"configMap": {"name": "ca", "items": [{"key": "a", "path": "x/a"}]}},
                    ]
                },
            },
        ],
        "initContainers": [
            {
                "name": "fetch",
                "image": "example.com/fetch:1",
                "resources": {"limits": {"cpu": 1, "memory": "64Mi"}},
                "env": [
                    {
                        "name": "REGION",
                        "valueFrom": {"configMapKeyRef": {"name": "site", "key": "region"}},
                    }
                ],
            }
        ],
    }
}


async def test_a_restricted_namespace_accepts_what_a_job_adds_and_nothing_else_is_added(
    api: Api, namespace: str
) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await api.patch("namespaces", namespace, {"metadata": {"labels": labels}})
    await api.create("serviceaccounts", {"metadata": {"name": "runner"}}, namespace)
    identity = JobIdentity(namespace, "job", IDENTITY.uid)
    body = make_pod(checked_job(**json.loads(json.dumps(POD_FIELDS))), identity, 0, 0, NODES)
    made = await api.create("pods", body, namespace)
    await api.delete("pods", "job-0-0", namespace, grace_seconds=0, missing_ok=True)
    for part in ("labels", "annotations"):
        assert made["metadata"][part] == body["metadata"][part]
    for name in (
        "serviceAccountName",
        "automountServiceAccountToken",
        "imagePullSecrets",
        "terminationGracePeriodSeconds",
        "securityContext",
    ):
        assert made["spec"][name] == body["spec"][name], name
    stored = {volume["name"]: volume for volume in made["spec"]["volumes"]}
    for volume in body["spec"]["volumes"]:
        [kind] = volume.keys() - {"name"}
        extra = {"defaultMode"} if kind != "emptyDir" else set()
        assert stored[volume["name"]][kind].keys() - extra == volume[kind].keys() - extra
    added = stored.keys() - {volume["name"] for volume in body["spec"]["volumes"]}
    assert len(added) == 1 and next(iter(added)).startswith("kube-api-access-"), "the token"
    for kind in ("containers", "initContainers"):
        for ours, theirs in zip(body["spec"][kind], made["spec"][kind], strict=True):
            for name in ("image", "imagePullPolicy", "securityContext", "envFrom"):
                assert theirs.get(name) == ours.get(name), name
            without_version = [_entry(entry) for entry in theirs["env"]]
            assert without_version == [_entry(entry) for entry in ours["env"]]


def _entry(entry: dict[str, Any]) -> Any:
    """Return a variable without the API version of a field, which the API server adds."""
    field = entry.get("valueFrom", {}).get("fieldRef")
    return (entry["name"], field["fieldPath"]) if field else entry


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
