"""Install, upgrade and uninstall by real Helm against a real API server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain_chart.helm import HelmError, Major
from llmtrain_chart.paths import DEPLOY
from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.chart.manifests import NAMESPACED
from tests.support.chart.releases import CRDS, DEFINITIONS, KEPT, Releases

pytestmark = pytest.mark.cluster

KUBECTL = Path(sys.executable).with_name("kubectl")
LEASES = NAMESPACED["Lease"]
HELD = {"holderIdentity": "operator-1", "leaseDurationSeconds": 15, "leaseTransitions": 1}


async def kubectl(cluster: ControlPlane, *arguments: str) -> None:
    command = [str(KUBECTL), f"--kubeconfig={cluster.kubeconfig()}", *arguments]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)


@pytest.mark.parametrize("major", [3, 4])
async def test_an_uninstall_leaves_nothing_but_kept_definitions(
    releases: Releases, major: Major
) -> None:
    before = await releases.inventory()
    values = {"replicas": 2, "priorityClass": {"create": True}, "dashboards": {"enabled": True}}
    notes = await releases.install(values=values, major=major)
    assert "CustomResourceDefinitions and all jobs are kept" in " ".join(notes.split())
    assert len(await releases.inventory() - before) > 15
    await releases.uninstall(major=major)
    await releases.becomes(before | KEPT)


async def test_an_uninstall_deletes_definitions_that_are_not_kept(releases: Releases) -> None:
    before = await releases.inventory()
    notes = await releases.install(values={"crds": {"keep": False}})
    assert "ALL JOBS AND FABRICS" in notes
    await releases.uninstall()
    await releases.becomes(before)


async def test_kept_definitions_belong_to_their_release(releases: Releases, team: str) -> None:
    await releases.install()
    await releases.uninstall()
    await releases.install()  # the same name in the same namespace
    await releases.uninstall()
    with pytest.raises(HelmError, match="invalid ownership metadata"):
        await releases.install(release="other", namespace=team)
    await releases.install("--take-ownership", release="other", namespace=team)
    found = await releases.api.get(DEFINITIONS, CRDS[0])
    assert found["metadata"]["annotations"]["meta.helm.sh/release-name"] == "other"


@pytest.mark.parametrize("major", [3, 4])
async def test_helm_takes_over_what_kubectl_has_applied(
    release_cluster: ControlPlane, releases: Releases, major: Major
) -> None:
    before = await releases.inventory()
    await kubectl(release_cluster, "apply", "-f", str(DEPLOY / "llmtrain.yaml"))
    with pytest.raises(HelmError, match="invalid ownership metadata"):
        await releases.install(major=major)
    await releases.install("--take-ownership", major=major)
    await releases.uninstall(major=major)
    await releases.becomes(before | KEPT)


async def test_upgrades_between_versions_of_helm(releases: Releases, release_api: Api) -> None:
    before = await releases.inventory()
    await releases.install(major=3)
    body = {"spec": HELD}
    await release_api.patch(LEASES, "llmtrain-operator", body, releases.namespace)
    steps: tuple[tuple[Major, int, tuple[str, ...]], ...] = (
        (4, 2, ()),
        (3, 3, ()),
        (4, 2, ("--server-side=true",)),
        (4, 1, ()),
        (3, 2, ()),
    )
    for major, replicas, options in steps:
        await releases.upgrade(*options, values={"replicas": replicas}, major=major)
        assert (await releases.deployment())["spec"]["replicas"] == replicas
        lease = await release_api.get(LEASES, "llmtrain-operator", releases.namespace)
        assert HELD.items() <= lease["spec"].items()
    await releases.uninstall(major=3)
    await releases.becomes(before | KEPT)


async def test_an_upgrade_after_a_scale_by_hand(
    release_cluster: ControlPlane, releases: Releases
) -> None:
    await releases.install()
    where = ("-n", releases.namespace)
    await kubectl(release_cluster, "scale", "deployment/llmtrain-operator", "--replicas=3", *where)
    await releases.upgrade(values={"podLabels": {"example.com/a": "b"}, "replicas": None})
    assert (await releases.deployment())["spec"]["replicas"] == 3
    await kubectl(release_cluster, "scale", "deployment/llmtrain-operator", "--replicas=4", *where)
    with pytest.raises(HelmError, match=r"conflict.*\.spec\.replicas"):
        await releases.upgrade(values={"replicas": 2})
    await releases.upgrade("--force-conflicts", values={"replicas": 2})
    assert (await releases.deployment())["spec"]["replicas"] == 2


async def test_values_that_change_in_an_upgrade(releases: Releases) -> None:
    await releases.install()
    values = {
        "config": {"metricsPort": 9999, "podGroups": True},
        "extraEnv": [{"name": "A", "value": "1"}],
        "podDisruptionBudget": {"minAvailable": 1},
        "podSecurityContext": {"runAsUser": None},
    }
    await releases.upgrade(values=values)
    (container,) = (await releases.deployment())["spec"]["template"]["spec"]["containers"]
    assert container["env"][1:] == [{"name": "A", "value": "1"}]
    assert "--metrics-port=9999" in container["args"]
    budget = await releases.api.get(
        NAMESPACED["PodDisruptionBudget"], "llmtrain-operator", releases.namespace
    )
    assert "maxUnavailable" not in budget["spec"]
    await releases.upgrade(values={**values, "crds": {"install": False}})
    assert (await releases.inventory()) >= KEPT
    await releases.helm("rollback", "llmtrain", "1")
    (container,) = (await releases.deployment())["spec"]["template"]["spec"]["containers"]
    assert [item["name"] for item in container["env"]] == ["LLMTRAIN_OPERATOR_LEASE_METADATA"]
