"""The pod of one node of a gang, as a dictionary.

It satisfies the Pod Security level *restricted* and mounts neither a service account token nor a
host path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from llmtrain_core.api import env, labels
from llmtrain_core.api.base import Quantity
from llmtrain_core.api.defaults import TERMINATION_GRACE_SECONDS
from llmtrain_core.api.job import Volume, Workers
from llmtrain_core.placement import device_tolerations
from llmtrain_core.validation.check import Job
from llmtrain_operator.manifests.names import JobIdentity

Object = dict[str, Any]

USER = 65532
CONTAINER = "trainer"
JOB_VOLUME, WORK_VOLUME, TMP_VOLUME, SHM_VOLUME = (
    f"{env.VOLUME_PREFIX}{name}" for name in ("job", "work", "tmp", "shm")
)
_NO_NODE = "none"
DEFAULT_COMMAND = ("python", "-m", "llmtrain_trainer.launch")
PROFILES: Mapping[str, Mapping[str, str]] = {
    "infiniband": {"NCCL_NET": "IB"},
    "roce": {"NCCL_NET": "IB", "NCCL_IB_ROCE_VERSION_NUM": "2"},
    "efa": {"NCCL_NET": "AWS Libfabric", "FI_PROVIDER": "efa"},
    "tcp": {"NCCL_IB_DISABLE": "1"},
}
"""NCCL variables of each network profile. The variables of the job take precedence.

`NCCL_NET` requires the network: without it NCCL fails instead of falling back to TCP. Settings that
depend on the switches (traffic class, GID index, devices) are left to `network.nccl`. Sources: the
NCCL guide, "Environment Variables" (NCCL_NET, NCCL_IB_ROCE_VERSION_NUM: routable RoCE),
aws-ofi-nccl (name of its network), libfabric (FI_PROVIDER).
"""


def make_pod(
    job: Job,
    identity: JobIdentity,
    attempt: int,
    index: int,
    nodes: Sequence[str],
    level_labels: Mapping[str, str] = MappingProxyType({}),
    *,
    fixed_user: bool = True,
) -> Object:
    """Return the pod of rank block `index`; `nodes` are the nodes of the gang by rank block.

    `level_labels` name the domain of the pod's node at each topology level. Without `fixed_user`,
    the pod names no user, no group and no `fsGroup`.
    """
    workers = job.spec.workers
    name = identity.pod(attempt, index)
    spec: Object = {
        "hostname": name,
        "subdomain": identity.name,
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": TERMINATION_GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            **({"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER} if fixed_user else {}),
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": _node_affinity(nodes[index]),
        "containers": [_container(job, identity, attempt, index)],
        "volumes": _volumes(workers, identity.config_map(attempt)),
    }
    if workers.node_selector:
        spec["nodeSelector"] = dict(workers.node_selector)
    devices = device_tolerations(spec["containers"][0]["resources"]["limits"])
    tolerations = [*(workers.tolerations or ()), *devices]
    spec["tolerations"] = [toleration.to_wire() for toleration in tolerations]
    if job.spec.priority_class_name:
        spec["priorityClassName"] = job.spec.priority_class_name
    extra = {**level_labels, labels.ATTEMPT: str(attempt), labels.NODE_INDEX: str(index)}
    metadata = identity.metadata(name, **extra)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def sample_pod(
    job: Job, raw: Mapping[str, Any], attempt: int = 0, *, fixed_user: bool = True
) -> Object:
    """Return the first pod of a job that has no nodes yet, to check what it requests."""
    identity = JobIdentity.of(raw)
    return make_pod(job, identity, attempt, 0, [_NO_NODE], fixed_user=fixed_user)


def _container(job: Job, identity: JobIdentity, attempt: int, index: int) -> Object:
    workers = job.spec.workers
    container: Object = {
        "name": CONTAINER,
        "image": workers.image,
        "command": list(workers.command or DEFAULT_COMMAND),
        "env": _env(job, identity, attempt, index),
        "ports": [
            {"name": "metrics", "containerPort": env.HTTP_PORT, "protocol": "TCP"},
            {"name": "rendezvous", "containerPort": env.RENDEZVOUS_PORT, "protocol": "TCP"},
        ],
        "resources": _resources(job),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": workers.has_read_only_root,
        },
        "terminationMessagePath": env.TERMINATION_LOG_PATH,
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": JOB_VOLUME, "mountPath": env.JOB_FOLDER_PATH, "readOnly": True},
            {"name": WORK_VOLUME, "mountPath": env.WORK_DIR_PATH},
            {"name": TMP_VOLUME, "mountPath": env.TMP_PATH},
            {"name": SHM_VOLUME, "mountPath": env.SHM_PATH},
            *(_mount(volume) for volume in workers.volumes or ()),
        ],
    }
    if workers.args:
        container["args"] = list(workers.args)
    return container


def _env(job: Job, identity: JobIdentity, attempt: int, index: int) -> list[Object]:
    gpus, nodes = job.gpus_per_node, job.nodes
    ranks = range(index * gpus, (index + 1) * gpus)
    master = f"{identity.pod(attempt, 0)}.{identity.name}.{identity.namespace}.svc"
    port = str(env.RENDEZVOUS_PORT)
    contract = {
        env.JOB_FILE: env.JOB_FILE_PATH,
        env.RANKS: ",".join(map(str, ranks)),
        env.ATTEMPT: str(attempt),
        env.PORT: str(env.HTTP_PORT),
        env.WORK_DIR: env.WORK_DIR_PATH,
        env.MASTER_ADDR: master,
        env.MASTER_PORT: port,
        env.WORLD_SIZE: str(job.layout.world_size),
        env.NODE_RANK: str(index),
        env.LOCAL_WORLD_SIZE: str(gpus),
        env.PET_NNODES: str(nodes),
        env.PET_NPROC_PER_NODE: str(gpus),
        env.PET_NODE_RANK: str(index),
        env.PET_MASTER_ADDR: master,
        env.PET_MASTER_PORT: port,
    }
    nccl = (job.spec.network.nccl if job.spec.network else None) or {}
    profile = PROFILES.get(job.spec.network.profile, {}) if job.spec.network else {}
    workers = job.spec.workers
    home = {env.HOME: env.TMP_PATH} if workers.has_read_only_root else {}
    own = {item.name: item.value for item in workers.env or ()}
    variables = {**home, **profile, **own, **nccl, **contract}
    return [
        *({"name": name, "value": value} for name, value in variables.items()),
        _from_field(env.POD_IP, "status.podIP"),
        _from_field(env.NODE_NAME, "spec.nodeName"),
    ]


def _from_field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _resources(job: Job) -> Object:
    workers = job.spec.workers
    given = workers.resources
    devices: dict[str, Quantity] = {workers.gpu_resource: job.gpus_per_node}
    rdma = job.spec.network.rdma if job.spec.network else None
    if rdma is not None:
        devices[rdma.resource] = rdma.count
    memory = workers.memory_request
    requests = {
        **((given and given.requests) or {}),
        **({} if memory is None else {"memory": memory}),
        **devices,
    }
    limits = {**((given and given.limits) or {}), **devices}
    return {
        kind: {key: str(amount) for key, amount in amounts.items()}
        for kind, amounts in (("requests", requests), ("limits", limits))
    }


def _volumes(workers: Workers, config_map: str) -> list[Object]:
    shm = {"medium": "Memory", "sizeLimit": str(workers.shm_size)}
    return [
        {"name": JOB_VOLUME, "configMap": {"name": config_map}},
        {"name": WORK_VOLUME, "emptyDir": {}},
        {"name": TMP_VOLUME, "emptyDir": {}},
        {"name": SHM_VOLUME, "emptyDir": shm},
        *(_volume(volume) for volume in workers.volumes or ()),
    ]


def _volume(volume: Volume) -> Object:
    if volume.persistent_volume_claim is not None:
        claim = volume.persistent_volume_claim
        source = {"claimName": claim.claim_name, "readOnly": claim.read_only}
        return {"name": volume.name, "persistentVolumeClaim": source}
    if volume.config_map is not None:
        return {"name": volume.name, "configMap": {"name": volume.config_map.name}}
    limit = volume.empty_dir.size_limit if volume.empty_dir else None
    return {"name": volume.name, "emptyDir": {"sizeLimit": str(limit)} if limit else {}}


def _mount(volume: Volume) -> Object:
    claim = volume.persistent_volume_claim
    read_only = {"readOnly": True} if claim is not None and claim.read_only else {}
    return {"name": volume.name, "mountPath": volume.mount_path, **read_only}


def _node_affinity(node: str) -> Object:
    """Restrict kube-scheduler to one node; it still checks resources and taints."""
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    required = {"nodeSelectorTerms": [term]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
