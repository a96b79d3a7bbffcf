"""A rank that dies in a running pod costs neither the pod nor a restart of the gang."""

import copy
import os
import signal
from pathlib import Path

import pytest
import yaml

from llmtrain_devcluster.demo.demo_cluster import JOBS, NAMESPACE, DemoCluster
from tests.support.paths import EXAMPLES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

EXAMPLE = yaml.safe_load((EXAMPLES / "sotu-3d.yaml").read_text())
NAME = "in-place"


def launchers_and_ranks() -> dict[int, list[int]]:
    """Process ids of launchers of this job and of their children."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if b"llmtrain_trainer.launch" in command and f"MASTER_ADDR={NAME}-0-0.".encode() in (
            environment
        ):
            parents[int(folder.name)] = parent
    found: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        if parent in parents:
            found.setdefault(parent, []).append(pid)
    return found


async def test_a_rank_killed_in_a_running_pod(demo_cluster: DemoCluster):
    manifest = copy.deepcopy(EXAMPLE)
    manifest["metadata"]["name"] = NAME
    manifest["spec"]["parallelism"] = {"tensor": 2, "data": 2}
    manifest["spec"]["training"]["steps"] = 100_000

    def progress(found: dict | None) -> dict:
        return ((found or {}).get("status") or {}).get("progress") or {}

    async with demo_cluster.cluster.client() as api:
        await api.create(JOBS, manifest, NAMESPACE)
        await api.wait_for(
            JOBS, NAME, lambda job: progress(job).get("step", 0) >= 2, NAMESPACE, seconds=600
        )
        before = await _pods(api)
        ranks = launchers_and_ranks()
        assert [len(children) for children in ranks.values()] == [2, 2]
        os.kill(min(ranks.values())[0], signal.SIGKILL)
        job = await api.wait_for(
            JOBS,
            NAME,
            lambda job: (
                progress(job).get("restartsInPlace") == 1
                and progress(job)["step"] >= 2
                and progress(job)["phase"] == "training"
            ),
            NAMESPACE,
            seconds=600,
        )
        status = job["status"]
        assert (status["restarts"], status.get("attempt", 0), status["phase"]) == (0, 0, "Running")
        last = status["lastRestart"]
        assert (last["action"], last["reason"]) == ("RestartInPlace", "Signal"), last
        assert last["restartsInPlace"] == 1 and last["rank"] in range(4), last
        assert await _pods(api) == before
        await api.delete(JOBS, NAME, NAMESPACE)
        await api.wait_for(JOBS, NAME, lambda job: job is None, NAMESPACE, seconds=120)


async def _pods(api) -> dict[str, str]:
    """Names and uids of the job's pods."""
    return {
        pod["metadata"]["name"]: pod["metadata"]["uid"]
        for pod in await api.list("pods", NAMESPACE)
        if pod["metadata"]["name"].startswith(f"{NAME}-")
    }
