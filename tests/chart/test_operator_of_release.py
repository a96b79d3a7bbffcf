"""An operator with the rights of a release: it runs jobs, and an uninstall lets go of them."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from llmtrain_chart.paths import CHART
from llmtrain_core.api.crd import crds
from llmtrain_devcluster.api import ApiStatusError
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import PodScript, ScriptedNodes, named
from tests.support.chart.garbage_collector import garbage_collector_knows_jobs
from tests.support.chart.manifests import NAMESPACED
from tests.support.chart.released_operator import ACCOUNT, ReleasedOperators
from tests.support.chart.releases import (
    CRDS,
    DEFINITIONS,
    KEPT,
    Releases,
)
from tests.support.operator_harness.harness import JOBS, SYSTEM, OperatorHarness, status_of

pytestmark = pytest.mark.cluster

LEASES = NAMESPACED["Lease"]


async def test_life_of_a_release_with_a_running_job(
    release_cluster: ControlPlane,
    release_nodes: ScriptedNodes,
    releases: Releases,
    operators: ReleasedOperators,
    team: str,
) -> None:
    before = await releases.inventory()
    closed = {"networkPolicy": {"enabled": True}}  # the hook gets its own, and deletes it
    await releases.install("--wait", "--timeout=300s", values=closed)
    operator = await operators.start()
    harness = OperatorHarness(releases.api, team, release_nodes, "chart")
    await harness.submit("first")
    await harness.phase("first", "Running")
    await garbage_collector_knows_jobs(release_cluster, harness)

    done = await asyncio.to_thread(run_test, operator.metrics_port)
    assert done.stdout == "1 of 1 operators lead\n", done.stderr
    release_nodes.script(named("llmtrain-test"), PodScript(exit_after=0.2))
    assert "Phase: Succeeded" in " ".join((await releases.helm("test", "llmtrain")).split())

    await releases.uninstall("--timeout=300s")
    operator.kill()
    assert not (await harness.job("first"))["metadata"].get("finalizers")
    assert {p["status"]["phase"] for p in await harness.pods()} == {"Running"}
    pods = {p["metadata"]["uid"] for p in await harness.pods()}

    await releases.install()
    operator.spawn()
    await asyncio.to_thread(operator.await_lead)
    changed = await harness.patch(
        "first", {"spec": {"runPolicy": {"activeDeadlineSeconds": 86400}}}
    )
    generation = changed["metadata"]["generation"]
    await harness.wait("first", lambda j: status_of(j)["observedGeneration"] == generation)
    assert pods == {p["metadata"]["uid"] for p in await harness.pods()}
    operator.kill()
    await releases.uninstall()
    await releases.api.delete(JOBS, "first", team)
    await releases.becomes(before | KEPT)


async def test_definitions_that_are_not_kept_take_jobs_with_them(
    release_cluster: ControlPlane,
    release_nodes: ScriptedNodes,
    releases: Releases,
    operators: ReleasedOperators,
    team: str,
) -> None:
    before = await releases.inventory()
    await releases.install(values={"crds": {"keep": False}})
    operator = await operators.start()
    harness = OperatorHarness(releases.api, team, release_nodes, "chart")
    await harness.submit("first")
    await harness.phase("first", "Running")
    await garbage_collector_knows_jobs(release_cluster, harness)
    operator.kill()
    await releases.uninstall()
    await releases.becomes(before)


async def test_a_lease_that_the_operator_creates_again_belongs_to_the_release(
    releases: Releases, operators: ReleasedOperators
) -> None:
    before = await releases.inventory()
    await releases.install()
    await releases.api.delete(LEASES, "llmtrain-operator", SYSTEM)
    operator = await operators.start()
    await releases.upgrade(values={"commonLabels": {"example.com/a": "b"}})
    lease = await releases.api.get(LEASES, "llmtrain-operator", SYSTEM)
    assert lease["metadata"]["labels"]["example.com/a"] == "b" and lease["spec"]["holderIdentity"]
    operator.kill()
    await releases.uninstall()
    await releases.becomes(before | KEPT)


async def test_definitions_that_are_deleted_and_created_again_are_served(
    release_cluster: ControlPlane,
    release_nodes: ScriptedNodes,
    releases: Releases,
    operators: ReleasedOperators,
    team: str,
) -> None:
    await releases.install()
    operator = await operators.start()
    harness = OperatorHarness(releases.api, team, release_nodes, "chart")
    await harness.submit("first")
    await harness.phase("first", "Running")

    # While the operator runs: it must serve the new definitions.
    await delete_definitions(releases)
    await delete_children(harness)
    await install_definitions(releases)
    await harness.submit("second")
    await harness.phase("second", "Running", seconds=120)

    # While it does not run: it is not ready before they exist, and then serves them.
    operator.kill()
    await releases.api.delete(LEASES, "llmtrain-operator", SYSTEM)  # a new leader need not wait
    await delete_definitions(releases)
    await delete_children(harness)
    operator.spawn()
    await operator.logs("informer=jobs list or watch failed: 404")
    assert operator.ask(operator.health_port, "/readyz") == 503
    await install_definitions(releases)
    await asyncio.to_thread(operator.await_lead)
    await harness.submit("third")
    await harness.phase("third", "Running")
    await releases.api.delete(JOBS, "third", team)
    await delete_children(harness)


async def delete_definitions(releases: Releases) -> None:
    """Delete the definitions as `kubectl delete -f crds/` does, and wait until they are gone."""
    for name in CRDS:
        await releases.api.delete(DEFINITIONS, name)
    for name in CRDS:
        await releases.api.wait_for(DEFINITIONS, name, lambda found: found is None, seconds=60)


async def delete_children(harness: OperatorHarness) -> None:
    """Delete what jobs have left: the definitions are so new that the garbage collector may not."""
    for child in await harness.children():
        resource, name = child.rsplit("/", 1)
        await harness.api.delete(resource, name, harness.namespace, missing_ok=True)
    await harness.pod_count(0)


async def install_definitions(releases: Releases) -> None:
    for crd in crds():
        await releases.api.apply(crd)
    served = False
    while not served:
        try:
            served = await releases.api.list(JOBS) == []
        except ApiStatusError:
            await asyncio.sleep(0.1)


async def test_an_operator_of_one_namespace(
    release_cluster: ControlPlane,
    release_nodes: ScriptedNodes,
    releases: Releases,
    operators: ReleasedOperators,
    team: str,
) -> None:
    await releases.install(values={"watchNamespaces": [team], "fixedUser": False})
    await operators.start(f"llmtrain-operator-{team}")
    harness = OperatorHarness(releases.api, team, release_nodes, "chart")
    foreign = OperatorHarness(releases.api, SYSTEM, release_nodes, "chart")
    await foreign.submit("other")
    await harness.submit("first")
    await harness.phase("first", "Running")
    assert status_of(await foreign.job("other")) == {}
    users = [pod["spec"]["securityContext"].get("runAsUser") for pod in await harness.pods()]
    assert users == [None, None]
    await releases.api.delete(JOBS, "first", team)
    await harness.gone("first")
    async with release_cluster.client(f"{ACCOUNT}operator") as limited:
        with pytest.raises(ApiStatusError, match="403"):
            await limited.list(JOBS, SYSTEM)
        with pytest.raises(ApiStatusError, match="403"):
            await limited.get(LEASES, "another", SYSTEM)
    await foreign.clear()


async def test_a_deleted_lease_is_created_again(
    releases: Releases, operators: ReleasedOperators
) -> None:
    await releases.install()
    operator = await operators.start()
    await releases.api.delete(LEASES, "llmtrain-operator", SYSTEM)
    await releases.api.wait_for(
        LEASES,
        "llmtrain-operator",
        lambda found: bool((found or {}).get("spec", {}).get("holderIdentity")),
        SYSTEM,
    )
    operator.stop()
    await releases.uninstall()
    with pytest.raises(ApiStatusError, match="404"):
        await releases.api.get(LEASES, "llmtrain-operator", SYSTEM)


def test_the_test_of_a_release_without_an_operator_fails() -> None:
    done = run_test(1, "LIMIT_SECONDS = 1")
    assert done.returncode == 1
    assert "operators lead, not 1" in done.stderr


def run_test(port: int, limit: str = "LIMIT_SECONDS = 60") -> subprocess.CompletedProcess[str]:
    """Run the script of `helm test` against one operator."""
    script = (CHART / "files" / "helm_test.py").read_text("utf-8")
    command = [sys.executable, "-c", script.replace("LIMIT_SECONDS = 60", limit)]
    return subprocess.run(
        [*command, "127.0.0.1", str(port), "1"], capture_output=True, text=True, check=False
    )
