"""Steps in the documentation do what it says: orders of an uninstall, and the admission policy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmtrain_chart.helm import find_helm
from llmtrain_core.api.labels import FINALIZER
from llmtrain_devcluster.api import Api, ApiStatusError
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import ScriptedNodes
from tests.support.chart.garbage_collector import garbage_collector_knows_jobs
from tests.support.chart.manifests import NAMESPACED, documents
from tests.support.chart.released_operator import ReleasedOperators
from tests.support.chart.releases import KEPT, Releases
from tests.support.operator_harness.harness import JOBS, SYSTEM, OperatorHarness, job_object
from tests.support.paths import ROOT

pytestmark = pytest.mark.cluster

POLICIES = "admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"


def code_block(page: str, first_words: str) -> str:
    """Return the code block of a page that starts with these words, without its indentation."""
    lines = iter((ROOT / page).read_text("utf-8").splitlines())
    for line in lines:
        if line.startswith(f"    {first_words}"):
            block = [line]
            for following in lines:
                if following and not following.startswith("    "):
                    break
                block.append(following)
            return "\n".join(text[4:] for text in block)
    raise LookupError(f"{page} has no code block {first_words!r}")


async def run_shell(cluster: ControlPlane, script: str) -> str:
    """Run commands of the documentation as the administrator; return what they print."""
    script = re.sub(r"^helm ", f"{find_helm()} ", script, flags=re.M)
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "KUBECONFIG": str(cluster.kubeconfig()),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
async def running_job(
    release_nodes: ScriptedNodes,
    releases: Releases,
    operators: ReleasedOperators,
    team: str,
) -> AsyncIterator[OperatorHarness]:
    """A release whose operator runs the job `first`."""
    await releases.install()
    await operators.start()
    harness = OperatorHarness(releases.api, team, release_nodes, "chart")
    await harness.submit("first")
    await harness.phase("first", "Running")
    yield harness
    with contextlib.suppress(ApiStatusError):  # the definition is gone
        await harness.clear()


async def test_definitions_are_deleted_before_the_release(
    release_cluster: ControlPlane,
    releases: Releases,
    running_job: OperatorHarness,
) -> None:
    await garbage_collector_knows_jobs(release_cluster, running_job)
    await run_shell(release_cluster, "kubectl delete -f crds/ --timeout=100s")
    while await running_job.children():
        await asyncio.sleep(0.2)
    await releases.uninstall()
    found = await releases.inventory()
    assert not found & KEPT
    assert not [item for item in found if "llmtrain-operator" in item and "events" not in item]


async def test_jobs_end_before_the_release(
    release_cluster: ControlPlane,
    releases: Releases,
    running_job: OperatorHarness,
) -> None:
    command = "kubectl delete llmtrainingjobs --all --all-namespaces --cascade=foreground"
    await run_shell(release_cluster, f"{command} --timeout=100s")
    assert await running_job.pods() == []
    await releases.uninstall()
    assert await releases.inventory() >= KEPT


async def test_the_finalizer_of_an_earlier_version_is_removed_by_hand(
    release_cluster: ControlPlane,
    releases: Releases,
    operators: ReleasedOperators,
    running_job: OperatorHarness,
) -> None:
    operators.started[0].kill()
    await releases.uninstall()
    await running_job.submit("second")
    foreign = ["example.com/backup", "example.com/audit"]
    first, second = [foreign[0], FINALIZER, foreign[1]], foreign
    await running_job.patch("first", {"metadata": {"finalizers": first}})
    await running_job.patch("second", {"metadata": {"finalizers": second}})
    script = code_block("docs/uninstall.md", "kubectl get llmtrainingjobs --all-namespaces")
    assert (await run_shell(release_cluster, script)).split() == [
        "llmtrainingjob.llmtrain.dev/first",
        "patched",
    ]
    for name in ("first", "second"):
        job = await running_job.job(name)
        assert job["metadata"]["finalizers"] == foreign
        await running_job.patch(name, {"metadata": {"finalizers": None}})
        await releases.api.delete(JOBS, name, running_job.namespace)
        await running_job.gone(name)


async def test_objects_of_a_release_are_deleted_by_label(
    release_cluster: ControlPlane, releases: Releases
) -> None:
    before = await releases.inventory()
    await releases.install(values={"priorityClass": {"create": True}})
    await run_shell(release_cluster, code_block("docs/uninstall.md", "kubectl delete clusterroles"))
    kinds = ("clusterroles/", "priorityclasses/", "policies/", "roles/", "bindings/")
    left = await releases.inventory() - before
    assert not [item for item in left if any(kind in item for kind in kinds)]


async def test_the_watched_namespaces_change_in_two_upgrades(
    release_cluster: ControlPlane, releases: Releases
) -> None:
    for name in ("team-a", "team-b"):
        metadata = {"name": name}
        await releases.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    await releases.install(values={"config": {"logLevel": "DEBUG"}})
    lines = (ROOT / "docs" / "upgrade.md").read_text("utf-8").splitlines()
    first = next(line.strip() for line in lines if "replicas=0" in line)
    await run_shell(release_cluster, code_block("docs/upgrade.md", first))
    deployments = await releases.api.list(NAMESPACED["Deployment"], SYSTEM)
    names = {found["metadata"]["name"] for found in deployments}
    assert names == {"llmtrain-operator-team-a", "llmtrain-operator-team-b"}
    for found in deployments:
        assert found["spec"]["replicas"] == 1
        (container,) = found["spec"]["template"]["spec"]["containers"]
        assert "--log-level=DEBUG" in container["args"]


async def test_definitions_are_upgraded_separately(
    release_cluster: ControlPlane, releases: Releases
) -> None:
    await releases.install()
    await run_shell(release_cluster, code_block("docs/upgrade.md", "kubectl apply --server-side"))
    assert await releases.inventory() >= KEPT
    await run_shell(release_cluster, code_block("docs/upgrade.md", "helm rollback"))


async def test_pull_secrets_of_jobs(release_cluster: ControlPlane, releases: Releases) -> None:
    script = code_block("docs/install.md", "kubectl patch serviceaccount default")
    await run_shell(release_cluster, script.replace("TEAM", SYSTEM))
    account = await releases.api.get("serviceaccounts", "default", SYSTEM)
    assert account["imagePullSecrets"] == [{"name": "mirror"}]
    await run_shell(release_cluster, code_block("docs/install.md", "kubectl label namespace"))


async def test_the_rights_of_the_operator_are_shown(
    release_cluster: ControlPlane, releases: Releases
) -> None:
    await releases.install()
    block = code_block("SECURITY.md", "kubectl auth can-i --list").replace("TEAM", SYSTEM)
    listed, secrets = block.splitlines()[:2]
    assert "llmtrainingjobs.llmtrain.dev" in await run_shell(release_cluster, listed)
    assert (await run_shell(release_cluster, f"{secrets} || true")).strip() == "no"


async def test_the_policy_restricts_priority_classes(releases: Releases) -> None:
    await releases.install()
    api = releases.api
    metadata = {"name": "research", "labels": {"team": "research"}}
    await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    policy, binding = documents(code_block("SECURITY.md", "apiVersion: admissionregistration"))
    await api.create(POLICIES, policy)
    await api.create(BINDINGS, binding)
    try:
        message = await _refusal(api, "research", "high")
        assert "the PriorityClass must be training or low" in message
        for namespace, priority in (("research", "low"), (SYSTEM, "high")):
            job = job_object("allowed", namespace, priorityClassName=priority)
            await api.create(JOBS, job, namespace)
    finally:
        await api.delete(BINDINGS, binding["metadata"]["name"])
        await api.delete(POLICIES, policy["metadata"]["name"])


async def _refusal(api: Api, namespace: str, priority: str) -> str:
    """Return why a job is refused. A new policy takes effect only after a moment."""
    for number in range(100):
        job = job_object(f"refused-{number}", namespace, priorityClassName=priority)
        try:
            await api.create(JOBS, job, namespace)
        except ApiStatusError as error:
            return str(error)
        await asyncio.sleep(0.1)
    raise TimeoutError("no job was refused")
