"""Jobs of an operator of a release, with the admission policies of the chart, and Pod Security."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import NodeSpec, ScriptedNodes
from tests.support.chart.namespaces import create_namespace
from tests.support.chart.released_operator import ACCOUNT, ReleasedOperators
from tests.support.chart.releases import Releases
from tests.support.chart.verdicts import OWNER, create_pod, settled
from tests.support.operator_harness.harness import JOBS, OperatorHarness, condition
from tests.support.operator_harness.pod_patches import LEGITIMATE, ROOT_WITH_IPC_LOCK, SPEC

pytestmark = pytest.mark.cluster

ENFORCE = "pod-security.kubernetes.io/enforce"
ALLOW = {"llmtrain.dev/allow-privileged-pods": "true"}
NAMESPACES: Mapping[str, Mapping[str, str]] = {
    "locked": {ENFORCE: "restricted", "llmtrain.dev/allow-service-accounts": "true", **ALLOW},
    "admits": {ENFORCE: "privileged", **ALLOW},
    "unlabelled": {ENFORCE: "privileged"},
}
PROFILE = "spec.network.profile"
IPC_LOCK = f"{SPEC}.containers[0].securityContext.capabilities.add[0]"
MEGA = {"harness": "mega", "cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb"}
VPCS = {f"networking.gke.io.networks/vpc{index}": "1" for index in range(1, 9)}
TCPXO: Mapping[str, Any] = {
    "workers": {"gpusPerNode": 8, "nodeSelector": {"harness": "mega"}},
    "parallelism": {"data": 16},
    "training": {"steps": 10, "globalBatchSize": 16, "microBatchSize": 1},
}
HOST_POD = {
    "hostNetwork": True,
    "containers": [{"name": "main", "image": "example.com/x:1"}],
}


@pytest.fixture
async def jobs(releases: Releases, release_nodes: ScriptedNodes) -> dict[str, OperatorHarness]:
    """Namespaces with different rights, by name."""
    for name, labels in NAMESPACES.items():
        await create_namespace(releases.api, name)
        await releases.api.patch("namespaces", name, {"metadata": {"labels": dict(labels)}})
    return {
        name: OperatorHarness(releases.api, name, release_nodes, "chart") for name in NAMESPACES
    }


async def is_refused(jobs: OperatorHarness, name: str, kind: str) -> str:
    """Return the message of the condition by which a job is refused."""

    def refused(job: Any) -> bool:
        found = condition(job, kind)
        return (found.get("status"), found.get("reason")) == ("False", "Forbidden")

    job = await jobs.wait(name, refused)
    assert await jobs.pods() == []
    return str(condition(job, kind)["message"])


async def test_objects_of_a_job_in_a_restricted_namespace(
    releases: Releases, operators: ReleasedOperators, jobs: dict[str, OperatorHarness]
) -> None:
    """Secret, pull secret, service account, network of Multus: the pod has exactly that."""
    await releases.install()
    await operators.start()
    locked, api = jobs["locked"], releases.api
    await create_objects(api, locked.namespace)
    await locked.submit(
        "job",
        workers={
            "env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "t"}}}],
            "imagePullSecrets": [{"name": "registry"}],
            "serviceAccountName": "runner",
            "podAnnotations": {"k8s.v1.cni.cncf.io/networks": "rail-0, rail-1"},
            "podPatch": {"spec": LEGITIMATE["buffers of TCP"].patch},
        },
    )
    await locked.phase("job", "Running")
    for pod in await locked.pods():
        spec = pod["spec"]
        [trainer] = spec["containers"]
        secrets = [
            e["valueFrom"] for e in trainer["env"] if "secretKeyRef" in e.get("valueFrom", {})
        ]
        assert secrets == [{"secretKeyRef": {"name": "hub", "key": "t"}}]
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert spec["serviceAccountName"] == "runner"
        assert pod["metadata"]["annotations"] == {"k8s.v1.cni.cncf.io/networks": "rail-0, rail-1"}
        assert spec["securityContext"]["sysctls"] == [
            {"name": "net.ipv4.tcp_rmem", "value": "4096 131072 67108864"}
        ]
        kinds = {next(iter(v.keys() - {"name"})) for v in spec["volumes"]}
        assert kinds == {"configMap", "emptyDir"}, "no token and no Secret as files"
        assert trainer["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    await api.delete(JOBS, "job", locked.namespace)
    await locked.gone("job")


async def create_objects(api: Api, namespace: str) -> None:
    registry = {"type": "kubernetes.io/dockerconfigjson"}
    for name, data, extra in (
        ("hub", {"t": "x"}, {}),
        ("registry", {".dockerconfigjson": '{"auths":{}}'}, registry),
    ):
        body = {"apiVersion": "v1", "kind": "Secret", "stringData": data, **extra}
        await api.apply({**body, "metadata": {"name": name, "namespace": namespace}})
    body = {"apiVersion": "v1", "kind": "ServiceAccount"}
    await api.apply({**body, "metadata": {"name": "runner", "namespace": namespace}})


async def test_root_that_locks_memory_needs_the_flag_and_a_namespace_that_admits_it(
    release_cluster: ControlPlane,
    releases: Releases,
    operators: ReleasedOperators,
    jobs: dict[str, OperatorHarness],
) -> None:
    await releases.install()
    without = await operators.start()
    root = {"workers": {"podPatch": {"spec": ROOT_WITH_IPC_LOCK}}}
    await jobs["admits"].submit("no-flag", **root)
    text = await is_refused(jobs["admits"], "no-flag", "Accepted")
    assert text.startswith(f"{IPC_LOCK}: ") and "--allow-privileged-pods" in text
    await jobs["admits"].delete("no-flag")
    without.stop()

    await releases.upgrade(values={"config": {"allowPrivilegedPods": True}})
    await operators.start()
    await jobs["locked"].submit("level", **root)
    text = await is_refused(jobs["locked"], "level", "Placed")
    assert text.startswith(f"{IPC_LOCK}: capability IPC_LOCK; {SPEC}.securityContext.runAsUser: ")
    assert "Pod Security level privileged" in text and "violates PodSecurity" in text

    # Until the API server applies the changed policy, its message does not name the label.
    async with release_cluster.client(f"{ACCOUNT}operator") as api:
        text = "unless an administrator labels"
        await settled(create_pod(api, "unlabelled", HOST_POD, [OWNER]), text)
        await settled(create_pod(api, "admits", HOST_POD, [OWNER]), "")
    of_node = LEGITIMATE["devices and network of the node"].patch
    await jobs["unlabelled"].submit("label", workers={"podPatch": {"spec": of_node}})
    text = await is_refused(jobs["unlabelled"], "label", "Placed")
    assert text.startswith(f"{SPEC}.hostNetwork: ") and "allow-privileged-pods=true" in text

    await jobs["admits"].submit("root", **root)
    await jobs["admits"].phase("root", "Running", seconds=60)
    for pod in await jobs["admits"].pods():
        assert pod["spec"]["securityContext"]["runAsUser"] == 0
        [trainer] = pod["spec"]["containers"]
        assert trainer["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
        assert trainer["securityContext"]["allowPrivilegeEscalation"] is False
    await jobs["admits"].delete("root")
    await jobs["admits"].submit("node", workers={"podPatch": {"spec": of_node}})
    await jobs["admits"].phase("node", "Running", seconds=60)
    assert all(pod["spec"]["hostNetwork"] for pod in await jobs["admits"].pods())
    for name, job in (("admits", "node"), ("locked", "level"), ("unlabelled", "label")):
        await jobs[name].delete(job)


async def test_the_sidecar_of_a_network_needs_the_flag_and_a_namespace_that_admits_it(
    release_cluster: ControlPlane,
    releases: Releases,
    operators: ReleasedOperators,
    jobs: dict[str, OperatorHarness],
    release_nodes: ScriptedNodes,
) -> None:
    """The same path as that of a patch of the job; `auto` uses TCP."""
    nodes = (NodeSpec(f"mega-{index}", MEGA, gpus=8, resources=VPCS) for index in range(2))
    await release_nodes.add(*nodes)
    await releases.install()
    without = await operators.start()
    admits = jobs["admits"]
    named = {**TCPXO, "network": {"profile": "tcpxo"}}
    await admits.submit("no-flag", **named)
    text = await is_refused(admits, "no-flag", "Accepted")
    assert text.startswith(f"{PROFILE}: the operator permits no path of the node")
    assert "--allow-privileged-pods" in text
    await admits.submit("auto", **TCPXO)
    job = await admits.phase("auto", "Running", seconds=60)
    assert job["status"]["network"]["row"] == "tcp"
    assert "set network.profile: tcpxo to use it" in job["status"]["network"]["notes"][0]
    assert all("initContainers" not in pod["spec"] for pod in await admits.pods())
    for name in ("no-flag", "auto"):
        await admits.delete(name)
    without.stop()

    await releases.upgrade(values={"config": {"allowPrivilegedPods": True}})
    await operators.start()
    await jobs["locked"].submit("level", **named)
    text = await is_refused(jobs["locked"], "level", "Placed")
    assert text.startswith(f"{PROFILE}: path of the node; {PROFILE}: capability NET_ADMIN; ")
    assert "Pod Security level privileged" in text and "violates PodSecurity" in text
    async with release_cluster.client(f"{ACCOUNT}operator") as api:
        await settled(create_pod(api, "unlabelled", HOST_POD, [OWNER]), "an administrator labels")
        await settled(create_pod(api, "admits", HOST_POD, [OWNER]), "")
    unlabelled = jobs["unlabelled"]
    await unlabelled.submit("named", **named)
    text = await is_refused(unlabelled, "named", "Placed")
    assert text.startswith(f"{PROFILE}: path of the node; ")
    assert "allow-privileged-pods=true" in text
    await unlabelled.delete("named")
    await admits.submit("job", **named)
    job = await admits.phase("job", "Running", seconds=60)
    network = job["status"]["network"]
    assert network["row"] == "gke-tcpxo" and "notes" not in network
    pods = await admits.pods()
    assert len(pods) == 2
    for pod in pods:
        (daemon,) = pod["spec"]["initContainers"]
        assert (daemon["name"], daemon["restartPolicy"]) == ("tcpxo-daemon", "Always")
        assert daemon["startupProbe"]["exec"]["command"] == ["cat", "/run/health-check"]
        assert daemon["securityContext"]["capabilities"]["add"] == ["NET_ADMIN", "NET_BIND_SERVICE"]
        (trainer,) = pod["spec"]["containers"]
        assert trainer["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        shown = {item["kind"] for item in network["settings"]}
        assert shown == {"Variable", "Annotation", "Sidecar", "HostPath", "Security"}
        assert '"network":"vpc8"' in pod["metadata"]["annotations"]["networking.gke.io/interfaces"]
    for name, job_name in (("admits", "job"), ("locked", "level")):
        await jobs[name].delete(job_name)
