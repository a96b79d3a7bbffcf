"""The pods of an Indexed Job prepare data over one volume, as the example says."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
import yaml

from llmtrain_devcluster.api import Api
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.cluster

EXAMPLE = EXAMPLES / "prepare.yaml"
JOBS = "batch/v1/jobs"


def job(name: str, pods: int) -> dict:
    """The example, for a small vocabulary and a folder of its own."""
    found = yaml.safe_load(EXAMPLE.read_text())
    found["metadata"]["name"] = name
    found["spec"] |= {"completions": pods, "parallelism": pods}
    (container,) = found["spec"]["template"]["spec"]["containers"]
    container["args"][container["args"].index("32768")] = "300"
    container["args"][-1] = f"/data/{name}"
    container["env"][0]["value"] = str(pods)
    return found


async def claim(api: Api, namespace: str, folder: Path) -> None:
    name = f"shared-{secrets.token_hex(4)}"
    common = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "",
        "volumeMode": "Filesystem",
    }
    size = {"storage": "1Gi"}
    volume = {**common, "capacity": size, "hostPath": {"path": str(folder)}}
    await api.create("persistentvolumes", {"metadata": {"name": name}, "spec": volume})
    wanted = {**common, "volumeName": name, "resources": {"requests": size}}
    await api.create(
        "persistentvolumeclaims", {"metadata": {"name": "data"}, "spec": wanted}, namespace
    )


def over(found: dict | None) -> bool:
    conditions = (found or {}).get("status", {}).get("conditions") or []
    return any(each["type"] in ("Complete", "Failed") for each in conditions)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_two_pods_write_what_one_writes(api: Api, namespace: str, tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    for number in range(6):
        words = (f"word{(number * 31 + i * i) % 97} and" for i in range(300))
        (crawl / f"{number}.txt").write_text(" ".join(words))
    await claim(api, namespace, tmp_path)
    for name, pods in (("two", 2), ("one", 1)):
        await api.create(JOBS, job(name, pods), namespace)
        ended = await api.wait_for(JOBS, name, over, namespace, seconds=120)
        assert ended is not None
        assert ended["status"].get("succeeded") == pods, ended["status"]
    indices = {
        pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]
        for pod in await api.list("pods", namespace, labels="job-name=two")
    }
    assert indices == {"0", "1"}
    written = files(tmp_path / "two")
    assert "manifest.json" in written
    assert written == files(tmp_path / "one")
    await api.delete(JOBS, "two", namespace)
    await api.delete(JOBS, "one", namespace)
