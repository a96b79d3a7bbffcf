"""Patches of pods, judged by a real API server: its own merge, and its Pod Security levels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmtrain_devcluster.api import Api, ApiStatusError, resource_path
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.manifests.pod import make_pod
from llmtrain_operator.manifests.pod_patch import sidecar_defaults, strategic_merge
from tests.support.operator_harness.jobs import IDENTITY, NODES, checked_job
from tests.support.operator_harness.pod_patches import LEGITIMATE, Legitimate

pytestmark = pytest.mark.cluster

Object = dict[str, Any]
LEVELS = ("restricted", "baseline", "privileged")
DRY_RUN = {"dryRun": "All", "fieldValidation": "Strict"}


def pod_of(case: Legitimate, namespace: str, *, patched: bool = True) -> Object:
    workers = json.loads(json.dumps(case.workers))
    if patched:
        workers["podPatch"] = {"spec": case.patch}
    identity = JobIdentity(namespace, "job", IDENTITY.uid)
    return make_pod(checked_job(workers=workers), identity, 0, 0, NODES)


def template_of(pod: Object, name: str) -> Object:
    """Return a PodTemplate with the spec of a pod. Unlike those of pods, it can be patched."""
    return {
        "apiVersion": "v1",
        "kind": "PodTemplate",
        "metadata": {"name": name},
        "template": {"spec": pod["spec"]},
    }


async def test_the_merge_is_that_of_the_api_server(api: Api, namespace: str) -> None:
    async def judge(name: str, case: Legitimate) -> str:
        template, path = name.lower().replace(" ", "-"), resource_path("podtemplates", namespace)
        plain = template_of(pod_of(case, namespace, patched=False), template)
        await api.request("POST", path, body=plain)
        job = checked_job(workers={**case.workers, "podPatch": {"spec": case.patch}})
        assert job.spec.workers.pod_patch is not None
        patch = job.spec.workers.pod_patch.to_wire()["spec"]
        for sidecar in patch.get("initContainers") or ():
            defaults = sidecar_defaults(job.spec.workers)
            sidecar |= strategic_merge(defaults, sidecar)
        theirs = await api.request(
            "PATCH",
            f"{path}/{template}",
            query=DRY_RUN,
            body={"template": {"spec": patch}},
            content_type="application/strategic-merge-patch+json",
        )
        own = template_of(pod_of(case, namespace), f"{template}-own")
        ours = await api.request("POST", path, query=DRY_RUN, body=own)
        same = theirs["template"]["spec"] == ours["template"]["spec"]
        return "" if same else f"{name}: {theirs['template']['spec']} {ours['template']['spec']}"

    found = await asyncio.gather(*(judge(*item) for item in LEGITIMATE.items()))
    assert not any(found), "\n".join(filter(None, found))


@pytest.fixture
async def levels(api: Api, namespace: str) -> AsyncIterator[dict[str, str]]:
    """A namespace of each Pod Security level, by level."""
    found = {level: f"{namespace}-{level}" for level in LEVELS}
    for level, name in found.items():
        labels = {"pod-security.kubernetes.io/enforce": level}
        body = {"apiVersion": "v1", "kind": "Namespace"}
        await api.apply({**body, "metadata": {"name": name, "labels": labels}})
    for name in found.values():
        await api.wait_for("serviceaccounts", "default", lambda o: o is not None, name)
    yield found
    for name in found.values():
        await api.delete("namespaces", name)


async def test_each_patch_needs_the_level_that_it_says(api: Api, levels: dict[str, str]) -> None:
    async def refusal(case: Legitimate, level: str) -> str:
        body = pod_of(case, levels[level])
        try:
            path = resource_path("pods", levels[level])
            await api.request("POST", path, query=DRY_RUN, body=body)
        except ApiStatusError as error:
            return str(error)
        return ""

    for name, case in LEGITIMATE.items():
        position = LEVELS.index(case.level)
        assert await refusal(case, case.level) == "", name
        if position > 0:
            found = await refusal(case, LEVELS[position - 1])
            assert "violates PodSecurity" in found, (name, found)
