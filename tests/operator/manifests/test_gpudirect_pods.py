"""Pods with GPUDirect-TCPXO and GPUDirect-TCPX: the network of a placement -> status -> pod."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtrain_core.api import env
from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.status.job import JobStatus
from llmtrain_core.network import NetworkRequest, NodeNetwork, gang_networks
from llmtrain_core.network.environments.gke_gpudirect import PARTS
from llmtrain_core.network.rows import INTERFACES
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.job_record import job_record
from llmtrain_operator.cache.network_status import network_status
from llmtrain_operator.job_state.observation import CreateError
from llmtrain_operator.manifests.pod import make_pod
from llmtrain_operator.manifests.pod_network import PodNetwork
from llmtrain_operator.reconcile.refusals import naming_privileges
from tests.support.node_lists import facts_of
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.jobs import IDENTITY

pytestmark = pytest.mark.unit

Object = dict[str, Any]
LISTS = {"tcpxo": "gke-a3-mega", "tcpx": "gke-a3-high"}
LIBRARIES = "/usr/local/nvidia/lib64"
each_profile = pytest.mark.parametrize("profile", LISTS)


def raw_job(profile: str, **workers: Any) -> Object:
    """Return a job of two nodes of 8 GPUs."""
    fields = {"gpusPerNode": 8, "command": ["x"], **workers}
    degrees = {"tensor": 8, "data": 2}
    raw = job_object(
        "job", "team", workers=fields, parallelism=degrees, network={"profile": profile}
    )
    raw["metadata"] |= {
        "uid": "1",
        "resourceVersion": "1",
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return raw


def job_with(profile: str, **workers: Any) -> Job:
    found = check("job", raw_job(profile, **workers)["spec"])
    assert isinstance(found, Job), found
    return found


def decided(name: str, job: Job) -> NodeNetwork:
    request = NetworkRequest.of(job)
    (option,) = gang_networks(facts_of(name), request, 2)
    assert option.network is not None, option.excluded
    return option.network


def stored(name: str, job: Job) -> Object:
    """Return the status, as the API server stores it."""
    wire = network_status(decided(name, job)).to_wire()
    return JobStatus.from_wire({"network": wire}).to_wire()["network"]


def pod_of(profile: str, **workers: Any) -> Object:
    job = job_with(profile, **workers)
    network = stored(LISTS[profile], job)
    assert network["row"] == f"gke-{profile}"
    return make_pod(job, IDENTITY, 0, 0, ["a", "b"], network=network)


def by(items: list[Object], key: str = "name") -> dict[str, Object]:
    found = {item[key]: item for item in items}
    assert len(found) == len(items)
    return found


def hosts(spec: Object, container: Object) -> dict[str, str]:
    """Return the paths of the node that a container has, by its own path."""
    volumes = by(spec["volumes"])
    return {
        mount["mountPath"]: volumes[mount["name"]]["hostPath"]["path"]
        for mount in container["volumeMounts"]
        if "hostPath" in volumes[mount["name"]]
    }


@each_profile
def test_the_sidecar_ends_with_the_trainer_and_is_not_it(profile: str) -> None:
    body = pod_of(profile)
    spec = body["spec"]
    (trainer,), (daemon,) = spec["containers"], spec["initContainers"]
    assert (trainer["name"], daemon["name"]) == (env.TRAINER_CONTAINER, f"{profile}-daemon")
    assert daemon["restartPolicy"] == "Always" and spec["restartPolicy"] == "Never"
    assert "resources" not in daemon and trainer["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert not any(item["name"].startswith(env.PREFIX) for item in daemon["env"])
    assert daemon["image"].startswith("us-docker.pkg.dev/gce-ai-infra/gpudirect-")
    assert body["metadata"]["annotations"].keys() == {
        f"devices.gke.io/container.{daemon['name']}",
        "networking.gke.io/default-interface",
        INTERFACES,
    }


@each_profile
def test_a_pod_has_the_paths_and_privileges_of_its_network_and_no_others(profile: str) -> None:
    spec = pod_of(profile)["spec"]
    bare = make_pod(job_with("auto"), IDENTITY, 0, 0, ["a", "b"])["spec"]
    (trainer,), (daemon,), (plain,) = spec["containers"], spec["initContainers"], bare["containers"]
    libraries = {LIBRARIES: "/home/kubernetes/bin/nvidia/lib64"}
    of_node = {"/hostsysfs": "/sys", "/hostprocsysfs": "/proc/sys"}
    own = "/dev/aperture_devices" if profile == "tcpxo" else "/run/tcpx"
    assert hosts(spec, trainer) == {**libraries, own: own}
    sockets = {} if profile == "tcpxo" else {own: own}
    assert hosts(spec, daemon) == {**libraries, **of_node, **sockets}
    added = ["NET_ADMIN", *(["NET_BIND_SERVICE"] if profile == "tcpxo" else [])]
    assert daemon["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"add": added, "drop": []},
        "readOnlyRootFilesystem": False,
        "runAsNonRoot": False,
        "runAsUser": 0,
    }
    root = {
        "runAsUser": 0,
        "runAsNonRoot": False,
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
    }
    expected = plain["securityContext"] | ({} if profile == "tcpxo" else root)
    assert trainer["securityContext"] == expected
    changed = {"containers", "initContainers", "volumes"}
    assert {k: v for k, v in spec.items() if k not in changed} == {
        k: v for k, v in bare.items() if k not in changed
    }
    assert [volume for volume in spec["volumes"] if "hostPath" not in volume] == bare["volumes"]


def test_the_trainer_starts_once_the_sidecar_of_tcpxo_serves() -> None:
    (daemon,) = pod_of("tcpxo")["spec"]["initContainers"]
    file = by(daemon["env"])["HEALTH_CHECK_LOG_FILE"]["value"]
    assert daemon["startupProbe"]["exec"] == {"command": ["cat", file]}
    assert "_" not in file, "the sidecar writes no file with such a name"


@each_profile
def test_variables_of_the_row_reach_the_trainer_and_those_of_the_job_win(profile: str) -> None:
    workers = {"env": [{"name": "NCCL_CROSS_NIC", "value": "1"}]}
    (trainer,) = pod_of(profile, **workers)["spec"]["containers"]
    found = by(trainer["env"])
    assert found["LD_LIBRARY_PATH"]["value"] == LIBRARIES
    assert found["NCCL_CROSS_NIC"]["value"] == "1"
    assert found["NCCL_SOCKET_IFNAME"]["value"] == "eth0"


def test_parts_of_the_job_win() -> None:
    """Image and security of the sidecar, a volume, a mount, and an annotation."""
    own = {
        "name": "tcpxo-daemon",
        "image": "registry.example.com/mirror/tcpgpudmarxd-dev:v1.0.20",
        "restartPolicy": "Always",
        "securityContext": {"privileged": True, "allowPrivilegeEscalation": True},
        "resources": {"requests": {"cpu": "1"}},
    }
    claim = {"claimName": "lib"}
    body = pod_of(
        "tcpxo",
        podPatch={"spec": {"initContainers": [own]}},
        volumes=[{"name": "lib", "mountPath": LIBRARIES, "persistentVolumeClaim": claim}],
        podAnnotations={INTERFACES: "mine"},
    )
    spec = body["spec"]
    (trainer,), (daemon,) = spec["containers"], spec["initContainers"]
    assert daemon["image"] == own["image"] and daemon["resources"] == own["resources"]
    assert daemon["securityContext"]["privileged"] is True
    assert daemon["startupProbe"] and daemon["args"], "the rest is that of the network"
    assert by(trainer["volumeMounts"], "mountPath")[LIBRARIES]["name"] == "lib"
    assert hosts(spec, daemon)[LIBRARIES] == "/home/kubernetes/bin/nvidia/lib64"
    assert body["metadata"]["annotations"][INTERFACES] == "mine"


def test_names_that_the_job_has_are_not_taken_from_it() -> None:
    first = {"name": "tcpxo-daemon", "image": "mine:1"}
    volume = {"name": "tcpxo-sys", "mountPath": "/data", "emptyDir": {}}
    spec = pod_of("tcpxo", initContainers=[first], volumes=[volume])["spec"]
    (own,) = spec["initContainers"]
    assert own["image"] == "mine:1" and "restartPolicy" not in own
    assert "emptyDir" in by(spec["volumes"])["tcpxo-sys"]


@each_profile
def test_a_job_that_names_the_profile_needs_the_permission_of_the_operator(profile: str) -> None:
    record = job_record(raw_job(profile))
    found = CheckedJobs().get(record)
    assert isinstance(found, list)
    assert {(item.reason, item.field) for item in found} == {
        (Reason.FORBIDDEN, "spec.network.profile")
    }
    assert "path of the node" in str(found[0])
    assert all("--allow-privileged-pods" in item.remedy for item in found)
    assert all(item.remedy.startswith("set it to tcp, or") for item in found)
    assert isinstance(CheckedJobs(allow_privileged_pods=True).get(record), Job)
    assert isinstance(CheckedJobs().get(job_record(raw_job("auto"))), Job)


@each_profile
@pytest.mark.parametrize("is_placed", [False, True])
def test_a_namespace_that_does_not_admit_the_pods_is_named(profile: str, is_placed: bool) -> None:
    job = job_with(profile)
    network = stored(LISTS[profile], job) if is_placed else None
    error = CreateError(Reason.FORBIDDEN, 'pods "job-0-0" is forbidden: violates PodSecurity "x"')
    text = naming_privileges(error, job, network).message
    assert text.startswith("spec.network.profile: path of the node; spec.network.profile: cap")
    assert "needs a namespace with the Pod Security level privileged; set it to tcp, or let" in text
    assert text.endswith(error.message)
    other = CreateError(Reason.FORBIDDEN, "denied by a webhook")
    assert naming_privileges(other, job, network) == other


@each_profile
@pytest.mark.parametrize("asked", ["auto", "tcp", "roce"])
def test_no_status_gives_a_sidecar_to_a_job_that_does_not_name_its_profile(
    profile: str, asked: str
) -> None:
    network = stored(LISTS[profile], job_with(profile))
    spec = make_pod(job_with(asked), IDENTITY, 0, 0, ["a", "b"], network=network)["spec"]
    assert "initContainers" not in spec
    assert not any("hostPath" in volume for volume in spec["volumes"])
    assert spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_kind_of_setting_of_a_later_release_is_left_out() -> None:
    later = {"kind": "Later", "name": "x", "value": "y", "setBy": "aws-efa", "source": ""}
    assert PodNetwork.of_status({"row": "aws-efa", "settings": [later]}).row == "aws-efa"


@each_profile
def test_a_volume_of_a_patch_replaces_that_of_the_network(profile: str) -> None:
    patch = {"spec": {"volumes": [{"name": f"{profile}-sys", "emptyDir": {}}]}}
    volumes = by(pod_of(profile, podPatch=patch)["spec"]["volumes"])
    assert volumes[f"{profile}-sys"] == {"name": f"{profile}-sys", "emptyDir": {}}


@each_profile
def test_whoever_edits_the_status_chooses_no_image_no_path_and_no_device(profile: str) -> None:
    job = job_with(profile)
    network = stored(LISTS[profile], job)
    expected = make_pod(job, IDENTITY, 0, 0, ["a", "b"], network=network)
    hostile = json.loads(json.dumps(network))
    for item in hostile["settings"]:
        if item["kind"] in ("Sidecar", "HostPath", "Security") or "devices" in item["name"]:
            item["value"] = "evil"
    more = {"value": "evil", "setBy": "gke-tcpxo", "source": ""}
    hostile["settings"] += [
        {"kind": "HostPath", "name": "/", **more},
        {"kind": "Sidecar", "name": "evil", **more},
        {"kind": "Annotation", "name": "devices.gke.io/container.trainer", **more},
    ]
    assert make_pod(job, IDENTITY, 0, 0, ["a", "b"], network=hostile) == expected
    assert PodNetwork.of(job, network).parts is PARTS[f"gke-{profile}"]
