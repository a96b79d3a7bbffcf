"""The pod of one node of a gang, as a dictionary.

It satisfies the Pod Security level *restricted* and mounts no host path, unless `workers.podPatch`
asks for more. It has a service account token only if the job asks for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from llmtrain_core.api import env, labels
from llmtrain_core.api.base import Quantity
from llmtrain_core.api.containers import EnvFromSource, EnvVar, InitContainer, ResourceAmounts
from llmtrain_core.api.workers import Workers
from llmtrain_core.network.request import AUTO
from llmtrain_core.placement import device_tolerations
from llmtrain_core.validation.check import Job
from llmtrain_operator.manifests.device_claims import pod_claims
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.manifests.pod_network import PodNetwork
from llmtrain_operator.manifests.pod_patch import patched
from llmtrain_operator.manifests.volumes import make_mounts, make_volumes

Object = dict[str, Any]

USER = 65532
_NO_NODE = "none"
DEFAULT_COMMAND = ("python", "-m", "llmtrain_trainer.launch")
_RDMA_PROFILES = frozenset({"infiniband", "roce", "efa"})
"""Profiles of networks that register memory."""


def make_pod(
    job: Job,
    identity: JobIdentity,
    attempt: int,
    index: int,
    nodes: Sequence[str],
    level_labels: Mapping[str, str] = MappingProxyType({}),
    *,
    fixed_user: bool = True,
    network: Mapping[str, Any] | None = None,
) -> Object:
    """Return the pod of rank block `index`; `nodes` are the nodes of the gang by rank block.

    See `make_pod_template` and `pod_of_node`. Raises PodPatchError.
    """
    template = make_pod_template(job, identity, attempt, fixed_user=fixed_user, network=network)
    return pod_of_node(template, job, identity, attempt, index, nodes[index], level_labels)


def make_pod_template(
    job: Job,
    identity: JobIdentity,
    attempt: int,
    *,
    fixed_user: bool = True,
    network: Mapping[str, Any] | None = None,
) -> Object:
    """Return what the pods of an attempt have in common, as the pod of rank block 0 on no node.

    `network` is `status.network`. Without `fixed_user`, the pod names no user, no group and no
    `fsGroup`. Raises PodPatchError.
    """
    workers, added = job.spec.workers, PodNetwork.of(job, network)
    name = identity.pod(attempt, 0)
    spec: Object = {
        "hostname": name,
        "subdomain": identity.name,
        "restartPolicy": "Never",
        "automountServiceAccountToken": bool(workers.automount_service_account_token),
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": workers.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            **({"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER} if fixed_user else {}),
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": _node_affinity(_NO_NODE),
        "containers": [_container(job, identity, attempt, added)],
        "volumes": make_volumes(workers, identity.config_map(attempt)),
        **_optional_fields(workers),
    }
    if workers.init_containers:
        contract = _contract(job, identity, attempt)
        spec["initContainers"] = [
            _init_container(container, workers, contract) for container in workers.init_containers
        ]
    if workers.node_selector:
        spec["nodeSelector"] = dict(workers.node_selector)
    _add_claims(spec, pod_claims(job, identity, attempt))
    spec["tolerations"] = _tolerations(workers, spec["containers"][0]["resources"]["limits"])
    if job.spec.priority_class_name:
        spec["priorityClassName"] = job.spec.priority_class_name
    metadata = _metadata(workers, identity, attempt, added)
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    return patched(body, workers, added.patch)


def pod_of_node(
    template: Object,
    job: Job,
    identity: JobIdentity,
    attempt: int,
    index: int,
    node: str,
    level_labels: Mapping[str, str],
) -> Object:
    """Return the pod of rank block `index` on a node, from the template of its attempt.

    `level_labels` name the node's domain at each level. The pod shares all values that are those
    of its gang with the template, so a gang of thousands of pods is built quickly.
    """
    name, variables = identity.pod(attempt, index), _node_variables(job, index)
    metadata, spec = template["metadata"], template["spec"]
    own = {labels.NODE_INDEX: str(index), **level_labels}
    containers = {
        kind: [_with_values(container, variables) for container in spec[kind]]
        for kind in ("containers", "initContainers")
        if kind in spec
    }
    return {
        **template,
        "metadata": {**metadata, "name": name, "labels": {**metadata["labels"], **own}},
        "spec": {**spec, "hostname": name, "affinity": _node_affinity(node), **containers},
    }


def _with_values(container: Object, variables: Mapping[str, str]) -> Object:
    """Return a container with other values of those variables that it has."""
    if "env" not in container:
        return container
    items = [
        {"name": item["name"], "value": variables[item["name"]]}
        if item["name"] in variables
        else item
        for item in container["env"]
    ]
    return {**container, "env": items}


def _add_claims(spec: Object, claims: Sequence[Object]) -> None:
    """Add the claims of a pod. The trainer gets the devices of all of them."""
    if claims:
        spec["resourceClaims"] = list(claims)
        names = [{"name": claim["name"]} for claim in claims]
        spec["containers"][0]["resources"]["claims"] = names


def _tolerations(workers: Workers, limits: Mapping[str, str]) -> list[Object]:
    """Return the tolerations of the job, and those of the taints of its devices."""
    devices = device_tolerations({workers.gpu_resource, *limits})
    return [toleration.to_wire() for toleration in (*(workers.tolerations or ()), *devices)]


def sample_pod(
    job: Job,
    raw: Mapping[str, Any],
    attempt: int = 0,
    *,
    fixed_user: bool = True,
    network: Mapping[str, Any] | None = None,
) -> Object:
    """Return the first pod of a job that has no pods yet, to check what it requests."""
    identity = JobIdentity.of(raw)
    return make_pod_template(job, identity, attempt, fixed_user=fixed_user, network=network)


def _metadata(workers: Workers, identity: JobIdentity, attempt: int, network: PodNetwork) -> Object:
    """Return the metadata of a pod. Labels of the operator win over those of the job."""
    extra = {labels.ATTEMPT: str(attempt), labels.NODE_INDEX: "0"}
    metadata = identity.metadata(identity.pod(attempt, 0), **extra)
    metadata["labels"] = {**(workers.pod_labels or {}), **metadata["labels"]}
    if annotations := {**network.annotations, **(workers.pod_annotations or {})}:
        metadata["annotations"] = annotations
    return metadata


def _optional_fields(workers: Workers) -> Object:
    """Return the fields of the spec that a pod has only if the job sets them."""
    names = [{"name": secret.name} for secret in workers.image_pull_secrets or ()]
    fields = {
        "serviceAccountName": workers.service_account_name,
        "runtimeClassName": workers.runtime_class_name,
        "imagePullSecrets": names,
    }
    return {name: value for name, value in fields.items() if value}


def _container(job: Job, identity: JobIdentity, attempt: int, network: PodNetwork) -> Object:
    workers = job.spec.workers
    container: Object = {
        "name": env.TRAINER_CONTAINER,
        "image": workers.image,
        "command": list(workers.command or DEFAULT_COMMAND),
        "env": _env(job, identity, attempt, network),
        "ports": [
            {"name": "metrics", "containerPort": env.HTTP_PORT, "protocol": "TCP"},
            {"name": "rendezvous", "containerPort": env.RENDEZVOUS_PORT, "protocol": "TCP"},
        ],
        "resources": _resources(job, network),
        "securityContext": _security(read_only_root=workers.has_read_only_root),
        "terminationMessagePath": env.TERMINATION_LOG_PATH,
        "terminationMessagePolicy": "File",
        "volumeMounts": make_mounts(workers),
    }
    if workers.args:
        container["args"] = list(workers.args)
    if workers.env_from:
        container["envFrom"] = _env_from(workers.env_from)
    return {**container, **_pull_policy(workers)}


def _init_container(
    container: InitContainer, workers: Workers, contract: Mapping[str, str]
) -> Object:
    """Return an init container: the volumes and variables of the trainer, without devices."""
    home = {env.HOME: env.TMP_PATH}
    variables = {
        **_plain(home),
        **_given(container.env or ()),
        **_plain(contract),
        **_FIELDS,
    }
    made: Object = {
        "name": container.name,
        "image": container.image,
        "env": list(variables.values()),
        "securityContext": _security(read_only_root=bool(workers.read_only_root_filesystem)),
        # Without a termination message, the end of the log says why it failed.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": make_mounts(workers),
        **_pull_policy(workers),
    }
    if container.command:
        made["command"] = list(container.command)
    if container.args:
        made["args"] = list(container.args)
    if container.env_from:
        made["envFrom"] = _env_from(container.env_from)
    if container.resources:
        made["resources"] = _texts(container.resources)
    return made


def _security(*, read_only_root: bool) -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": read_only_root,
    }


def _pull_policy(workers: Workers) -> Object:
    return {"imagePullPolicy": workers.image_pull_policy} if workers.image_pull_policy else {}


def _env_from(sources: Sequence[EnvFromSource]) -> list[Object]:
    return [source.to_wire() for source in sources]


def _env(job: Job, identity: JobIdentity, attempt: int, network: PodNetwork) -> list[Object]:
    own, workers = job.spec.network, job.spec.workers
    home = {env.HOME: env.TMP_PATH} if workers.has_read_only_root else {}
    variables = {
        **_plain({**home, **network.variables}),
        **_given(workers.env or ()),
        **_plain((own and own.nccl) or {}),
        **_plain(_contract(job, identity, attempt)),
        **_plain({**_rdma(job, network), **_network_row(job, network)}),
        **_FIELDS,
    }
    return list(variables.values())


def _contract(job: Job, identity: JobIdentity, attempt: int) -> dict[str, str]:
    gpus, nodes = job.gpus_per_node, job.nodes
    master = f"{identity.pod(attempt, 0)}.{identity.name}.{identity.namespace}.svc"
    port = str(env.RENDEZVOUS_PORT)
    return {
        env.JOB_FILE: env.JOB_FILE_PATH,
        env.ATTEMPT: str(attempt),
        env.PORT: str(env.HTTP_PORT),
        env.WORK_DIR: env.WORK_DIR_PATH,
        env.MASTER_ADDR: master,
        env.MASTER_PORT: port,
        env.WORLD_SIZE: str(job.layout.world_size),
        env.LOCAL_WORLD_SIZE: str(gpus),
        env.PET_NNODES: str(nodes),
        env.PET_NPROC_PER_NODE: str(gpus),
        env.PET_MASTER_ADDR: master,
        env.PET_MASTER_PORT: port,
        **_node_variables(job, 0),
    }


def _node_variables(job: Job, index: int) -> dict[str, str]:
    """Return the variables of the contract that differ between the pods of a gang."""
    gpus, rank = job.gpus_per_node, str(index)
    ranks = range(index * gpus, (index + 1) * gpus)
    return {
        env.RANKS: ",".join(map(str, ranks)),
        env.NODE_RANK: rank,
        env.PET_NODE_RANK: rank,
    }


def _rdma(job: Job, network: PodNetwork) -> dict[str, str]:
    """Return the variable that tells the trainer whether RDMA is required or preferred."""
    own = job.spec.network
    profile = own.profile if own else AUTO
    if profile in _RDMA_PROFILES:
        return {env.RDMA: "required"}
    has_devices = network.has_devices or (own is not None and own.rdma is not None)
    return {env.RDMA: "preferred"} if profile == AUTO and has_devices else {}


def _network_row(job: Job, network: PodNetwork) -> dict[str, str]:
    """Return the variable by which the trainer of a job with `network.tuning` finds candidates."""
    is_tuned = job.spec.network is not None and job.spec.network.tuning is not None
    return {env.NETWORK_ROW: network.row} if is_tuned and network.row else {}


def _plain(variables: Mapping[str, str]) -> dict[str, Object]:
    return {name: {"name": name, "value": value} for name, value in variables.items()}


def _given(variables: Sequence[EnvVar]) -> dict[str, Object]:
    """Return variables of the job by name, with their values or sources."""
    return {item.name: _entry(item) for item in variables}


def _entry(item: EnvVar) -> Object:
    if item.value_from is None:
        return {"name": item.name, "value": item.value}
    return {"name": item.name, "valueFrom": item.value_from.to_wire()}


def _from_field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


_FIELDS: Mapping[str, Object] = {
    env.POD_IP: _from_field(env.POD_IP, "status.podIP"),
    env.NODE_NAME: _from_field(env.NODE_NAME, "spec.nodeName"),
}
"""Variables of the contract whose values are fields of the pod."""


def _resources(job: Job, network: PodNetwork) -> Object:
    workers = job.spec.workers
    given = workers.resources
    devices: dict[str, Quantity] = {}
    if workers.gpu_class is None:
        devices[workers.gpu_resource] = job.gpus_per_node
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
    own = _texts(ResourceAmounts(requests=requests, limits=limits))
    return {kind: {**network.resources, **amounts} for kind, amounts in own.items()}


def _texts(resources: ResourceAmounts) -> Object:
    """Return requests and limits as text, as the API server stores them."""
    return {
        kind: {key: str(amount) for key, amount in (amounts or {}).items()}
        for kind, amounts in (("requests", resources.requests), ("limits", resources.limits))
    }


def _node_affinity(node: str) -> Object:
    """Restrict kube-scheduler to one node; it still checks resources and taints."""
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    required = {"nodeSelectorTerms": [term]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
