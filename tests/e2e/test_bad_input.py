"""Mistakes that only show in the pods: each ends in a condition with reason, field and remedy."""

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.demo.demo_cluster import JOBS, NAMESPACE, DemoCluster
from tests.support.paths import EXAMPLES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

EXAMPLE = yaml.safe_load((EXAMPLES / "sotu-3d.yaml").read_text())
FINAL = {"Succeeded", "Failed", "Rejected"}


def job(name: str, **sections: dict) -> dict:
    manifest = copy.deepcopy(EXAMPLE)
    manifest["metadata"]["name"] = name
    spec = manifest["spec"]
    spec["parallelism"] = {"tensor": 2, "data": 1}
    spec["failurePolicy"] = {"maxRestarts": 0}
    for section, value in sections.items():
        spec[section] = {**spec.get(section, {}), **value}
    return manifest


async def status_when(api: Api, name: str, condition: Callable[[dict], bool]) -> dict:
    """Wait for a status of a job: four jobs start at the same time, perhaps on a busy machine."""
    found = await api.wait_for(
        JOBS,
        name,
        lambda job: condition((job or {}).get("status") or {}),
        namespace=NAMESPACE,
        seconds=600,
    )
    return found["status"]


def is_without_image(status: dict) -> bool:
    return any(found["reason"] == "ImagePullFailed" for found in status.get("conditions", ()))


async def running_pods(api: Api) -> list[str]:
    return [
        pod["metadata"]["name"]
        for pod in await api.list("pods", NAMESPACE)
        if pod["status"].get("phase") not in {"Succeeded", "Failed"}
    ]


async def check_a_missing_secret(api: Api, manifest: dict) -> None:
    """The kubelet says which Secret is missing; the job gives its nodes back and does not fail."""

    def is_released(status: dict) -> bool:
        placed = [c for c in status.get("conditions", ()) if c["type"] == "Placed"]
        return any(c["reason"] == "ObjectNotFound" for c in placed)

    await api.create(JOBS, manifest, NAMESPACE)
    status = await status_when(api, "no-secret", is_released)
    [placed] = [c for c in status["conditions"] if c["type"] == "Placed"]
    assert 'secret "hub" not found' in placed["message"], placed
    assert not status.get("failures") and not status.get("restarts")
    await api.delete(JOBS, "no-secret", NAMESPACE)


async def test_each_mistake_names_reason_field_and_remedy(
    demo_cluster: DemoCluster, tmp_path: Path
):
    missing_folder = {"sources": [{"name": "text", "uri": "file:///no/such/folder"}]}
    missing_package = {"sources": [{"name": "text", "uri": "package://sotu/no-such-folder"}]}
    cases = {
        "no-folder": ({"data": missing_folder}, "CorpusMissing", "spec.data.sources[0].uri"),
        "no-package": ({"data": missing_package}, "CorpusMissing", "spec.data.sources[0].uri"),
        # /proc cannot hold folders, whoever asks.
        "no-checkpoint": (
            {"checkpoint": {"uri": "file:///proc/checkpoints"}},
            "CheckpointUnreadable",
            "spec.checkpoint.uri",
        ),
        "no-image": (
            {"workers": {"image": "llmtrain/no-such-image:1"}},
            "ImagePullFailed",
            "spec.workers.image",
        ),
    }
    fetch = {
        "name": "fetch",
        "image": EXAMPLE["spec"]["workers"]["image"],
        "command": ["sh", "-c", 'test "$NODE_RANK" = 0 && exit 3'],
    }
    cases["bad-init"] = (
        {"workers": {"initContainers": [fetch]}},
        "ExitCode",
        "init container fetch of pod bad-init-0-0",
    )
    token = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    async with demo_cluster.cluster.client() as api:
        for name, (sections, _, _) in cases.items():
            await api.create(JOBS, job(name, **sections), NAMESPACE)
        await check_a_missing_secret(api, job("no-secret", workers={"env": [token]}))
        await status_when(api, "no-image", is_without_image)
        at_once = {"spec": {"failurePolicy": {"startupTimeout": "1s"}}}
        await api.patch(JOBS, "no-image", at_once, NAMESPACE)
        for name, (_, reason, field) in cases.items():
            status = await status_when(api, name, lambda found: found.get("phase") in FINAL)
            assert status["phase"] == "Failed", (name, status)
            failed = next(c for c in status["conditions"] if c["type"] == "Failed")
            assert failed["reason"] == reason, (name, failed)
            assert field in failed["message"], (name, failed)
            assert status["reason"] == reason
        async with asyncio.timeout(120):
            while await running_pods(api):
                await asyncio.sleep(0.2)
