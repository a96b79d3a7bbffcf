"""Pods and the other objects of a job, also in a namespace with restricted Pod Security."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtrain_core.api import env
from llmtrain_core.placement import Request
from llmtrain_core.topology.resources import pod_requests
from llmtrain_operator.manifests.job_resources import (
    make_config_map,
    make_network_policy,
    make_service,
)
from llmtrain_operator.manifests.pod import make_pod
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.jobs import EVERYTHING, IDENTITY, NODES, checked_job

pytestmark = pytest.mark.unit


def variables(body: dict[str, Any]) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in _only(body)["env"]}


def _only(body: dict[str, Any]) -> dict[str, Any]:
    [container] = body["spec"]["containers"]
    return container


def test_a_pod_holds_its_block_of_ranks() -> None:
    body = make_pod(checked_job(), IDENTITY, attempt=3, index=1, nodes=NODES)
    assert body["metadata"]["name"] == body["spec"]["hostname"] == "job-3-1"
    assert body["spec"]["subdomain"] == "job"
    found = variables(body)
    assert found[env.RANKS] == "2,3"
    assert found[env.MASTER_ADDR] == "job-3-0.job.team.svc"
    assert found[env.WORLD_SIZE] == "4" and found[env.LOCAL_WORLD_SIZE] == "2"
    assert found[env.NODE_RANK] == found[env.PET_NODE_RANK] == "1"
    assert found[env.PET_NNODES] == "2" and found[env.ATTEMPT] == "3"
    assert found[env.POD_IP]["fieldRef"]["fieldPath"] == "status.podIP"
    assert found[env.NODE_NAME]["fieldRef"]["fieldPath"] == "spec.nodeName"
    # Only names for what the job itself cannot set are missing from the contract.
    contract = {v for k, v in vars(env).items() if k.isupper() and v in env.OWNED}
    assert contract <= found.keys()
    affinity = body["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms[0]["matchFields"][0]["values"] == ["node-b"]


def test_a_pod_is_owned_labelled_and_unprivileged() -> None:
    body = make_pod(checked_job(**EVERYTHING), IDENTITY, attempt=0, index=0, nodes=NODES)
    [owner] = body["metadata"]["ownerReferences"]
    assert owner["uid"] == IDENTITY.uid and owner["controller"] and owner["blockOwnerDeletion"]
    assert body["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "llmtrain",
        "llmtrain.dev/job-name": "job",
        "llmtrain.dev/job-uid": IDENTITY.uid,
        "llmtrain.dev/attempt": "0",
        "llmtrain.dev/node-index": "0",
    }
    spec = body["spec"]
    assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
    assert spec["restartPolicy"] == "Never"
    assert spec["securityContext"]["runAsUser"] == 65532
    security = _only(body)["securityContext"]
    assert security == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": False,
    }
    told = json.dumps(body)
    for word in ("hostNetwork", "hostPath", "hostPID", "privileged", "serviceAccountName"):
        assert word not in told


def test_fields_of_the_spec() -> None:
    body = make_pod(checked_job(**EVERYTHING), IDENTITY, attempt=0, index=0, nodes=NODES)
    container, spec = _only(body), body["spec"]
    assert container["command"] == ["torchrun"] and container["args"] == ["-m", "x"]
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "2", "rdma/hca": "2"},
        "limits": {"memory": "16Gi", "nvidia.com/gpu": "2", "rdma/hca": "2"},
    }
    assert variables(body)["NCCL_DEBUG"] == "INFO" and variables(body)["HELLO"] == "$(WORLD)"
    assert spec["nodeSelector"] == {"pool": "gpu"} and spec["priorityClassName"] == "high"
    assert spec["tolerations"] == [
        {"key": key, "operator": "Exists", "effect": "NoSchedule"}
        for key in ("gpu", "nvidia.com/gpu", "rdma/hca")
    ]
    volumes = {v["name"]: v for v in spec["volumes"]}
    assert volumes["llmtrain-shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert volumes["data"]["persistentVolumeClaim"] == {"claimName": "corpus", "readOnly": True}
    assert volumes["scratch"]["emptyDir"] == {"sizeLimit": "1Gi"}
    mounts = {m["name"]: m for m in container["volumeMounts"]}
    assert mounts["data"]["readOnly"] and mounts["llmtrain-shm"]["mountPath"] == "/dev/shm"
    default = make_pod(checked_job(), IDENTITY, attempt=0, index=0, nodes=NODES)
    assert _only(default)["command"] == ["python", "-m", "llmtrain_trainer.launch"]


def test_a_read_only_root_has_writable_folders() -> None:
    def made(**workers: Any) -> dict[str, Any]:
        return make_pod(checked_job(workers=workers), IDENTITY, attempt=0, index=0, nodes=NODES)

    body = made()
    container = _only(body)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {volume["name"]: volume for volume in body["spec"]["volumes"]}
    writable = {
        mount["mountPath"]
        for mount in container["volumeMounts"]
        if "emptyDir" in volumes[mount["name"]]
    }
    assert writable == set(env.WRITABLE_PATHS)
    assert variables(body)["HOME"] in writable
    assert variables(made(env=[{"name": "HOME", "value": "/x"}]))["HOME"] == "/x"
    for own in ({"readOnlyRootFilesystem": False}, {"command": ["torchrun"]}):
        other = made(**own)
        assert _only(other)["securityContext"]["readOnlyRootFilesystem"] is False
        assert "HOME" not in variables(other)


def test_one_limit_bounds_what_a_pod_writes_to_the_disk_of_its_node() -> None:
    disk = {"ephemeral-storage": "200Gi"}
    job = checked_job(workers={"resources": {"limits": disk}})
    body = make_pod(job, IDENTITY, attempt=0, index=0, nodes=NODES)
    assert _only(body)["resources"]["limits"].items() >= disk.items()
    # The kubelet adds up all folders of the pod. So those on the disk have no limits of their own.
    folders = [v["emptyDir"] for v in body["spec"]["volumes"] if "emptyDir" in v]
    assert [folder for folder in folders if folder.get("medium") != "Memory"] == [{}, {}]
    assert pod_requests(body["spec"])["ephemeral-storage"] == 200 * 2**30


def test_shared_memory_is_requested_as_memory() -> None:
    job = checked_job(workers={"shmSize": "64Gi"})
    resources = _only(make_pod(job, IDENTITY, attempt=0, index=0, nodes=NODES))["resources"]
    assert resources["requests"]["memory"] == "64Gi" and "memory" not in resources["limits"]


@pytest.mark.parametrize(
    "workers",
    [
        {},
        {"shmSize": "3Gi"},
        {"shmSize": "3Gi", "resources": {"requests": {"memory": "1Gi", "cpu": "500m"}}},
        {"shmSize": "3Gi", "resources": {"limits": {"memory": "8Gi", "rdma/hca": 1}}},
    ],
)
def test_the_placement_counts_what_the_pod_requests(workers: dict[str, Any]) -> None:
    job = checked_job(workers=workers)
    body = make_pod(job, IDENTITY, attempt=0, index=0, nodes=NODES)
    assert pod_requests(body["spec"]) == Request.of(job).needs


def test_a_network_without_rdma() -> None:
    def found(profile: str, **nccl: str) -> dict[str, Any]:
        job = checked_job(network={"profile": profile, "nccl": nccl})
        return variables(make_pod(job, IDENTITY, attempt=0, index=0, nodes=NODES))

    assert found("tcp")["NCCL_IB_DISABLE"] == "1"
    assert found("tcp", NCCL_IB_DISABLE="0")["NCCL_IB_DISABLE"] == "0"
    assert "NCCL_IB_DISABLE" not in found("auto")
    assert not {"NCCL_NET", "FI_PROVIDER"} & found("auto").keys()
    for profile, network in (("infiniband", "IB"), ("roce", "IB"), ("efa", "AWS Libfabric")):
        assert found(profile)["NCCL_NET"] == network
    assert found("roce", NCCL_NET="Socket")["NCCL_NET"] == "Socket"


@pytest.mark.parametrize(
    ("network", "use"),
    [
        (None, None),
        ({"profile": "auto"}, None),
        ({"profile": "tcp", "rdma": {"resource": "rdma/hca"}}, None),
        ({"rdma": {"resource": "rdma/hca"}}, "preferred"),
        ({"profile": "infiniband"}, "required"),
        ({"profile": "roce", "rdma": {"resource": "rdma/hca"}}, "required"),
        ({"profile": "efa"}, "required"),
    ],
)
def test_the_trainer_knows_whether_rdma_is_required(
    network: dict[str, Any] | None, use: str | None
) -> None:
    job = checked_job(**({"network": network} if network else {}))
    body = make_pod(job, IDENTITY, attempt=0, index=0, nodes=NODES)
    assert variables(body).get(env.RDMA) == use


def test_a_tuning_job_knows_its_network_and_the_trials_of_earlier_attempts() -> None:
    tuned = {"network": {"tuning": {}}}
    chosen = {"row": "coreweave-infiniband", "settings": []}

    def row(stored: dict[str, Any] | None, **spec: Any) -> Any:
        body = make_pod(checked_job(**spec), IDENTITY, 0, 0, NODES, network=stored)
        return variables(body).get(env.NETWORK_ROW)

    assert row(chosen, **tuned) == "coreweave-infiniband"
    assert row(chosen) is None and row(None, **tuned) is None

    known = {"state": "Trying", "placement": "ab", "fastest": {}, "trials": []}
    raw = job_object("job", "team")
    status = {"progress": {"step": 3, "networkTuning": known}}

    def told(spec: dict[str, Any]) -> Any:
        job = {**raw, "spec": {**raw["spec"], **spec}, "status": status}
        return json.loads(make_config_map(job, IDENTITY, 1, "")["data"]["job.json"])

    assert told(tuned)["networkTuning"] == known
    assert "networkTuning" not in told({})


def test_network_policy_and_service() -> None:
    scraper = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    policy = make_network_policy(IDENTITY, [scraper])["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    gang, metrics = policy["ingress"]
    assert gang == {"from": [{"podSelector": policy["podSelector"]}]}
    assert metrics == {"from": [scraper], "ports": [{"protocol": "TCP", "port": env.HTTP_PORT}]}
    assert make_network_policy(IDENTITY)["spec"]["ingress"] == [gang]
    headless = make_service(IDENTITY)["spec"]
    assert headless["clusterIP"] == "None" and headless["publishNotReadyAddresses"]
    assert headless["selector"] == policy["podSelector"]["matchLabels"]
    raw = job_object("job", "team")
    config_map = make_config_map(raw, IDENTITY, 0, "ab" * 32)
    assert config_map["immutable"] and config_map["data"]["gang-key"] == "ab" * 32
    told = json.loads(config_map["data"]["job.json"])
    assert told["metadata"] == {"name": "job", "namespace": "team", "uid": IDENTITY.uid}
    assert told["spec"] == raw["spec"]
