"""Patches of pods: those that users need, and attacks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

PATCH = "spec.workers.podPatch"
SPEC = f"{PATCH}.spec"


def sidecar(**fields: Any) -> Object:
    """Return a patch with one sidecar."""
    found = {"name": "a", "image": "example.com/a:1", "restartPolicy": "Always", **fields}
    return {"initContainers": [found]}


def trainer(**fields: Any) -> Object:
    """Return a patch of the container that trains."""
    return {"containers": [{"name": "trainer", **fields}]}


def security(**fields: Any) -> Object:
    """Return a patch of the security settings of the container that trains."""
    return trainer(securityContext=fields)


def mounted(path: str, volume: Object | None = None) -> Object:
    """Return a patch that mounts a volume, an empty directory by default, in the trainer."""
    found = {"name": "a", **(volume or {"emptyDir": {}})}
    return {"volumes": [found], **trainer(volumeMounts=[{"name": "a", "mountPath": path}])}


@dataclass(frozen=True)
class Legitimate:
    """A patch, and what the pod then has."""

    patch: Object
    expected: Object
    """A part of the spec of the pod. Lists are compared by their items' names or paths."""
    level: str = "restricted"
    """The lowest Pod Security level that admits the pod."""
    workers: Object = field(default_factory=dict)


ROOT = {"runAsUser": 0, "runAsNonRoot": False}
ROOT_WITH_IPC_LOCK = {
    "securityContext": ROOT,
    **security(capabilities={"add": ["IPC_LOCK"]}),
}
DEVICES = {"hostPath": {"path": "/dev/infiniband", "type": "Directory"}}

LEGITIMATE: dict[str, Legitimate] = {
    "aliases": Legitimate(
        {"hostAliases": [{"ip": "192.0.2.1", "hostnames": ["store.example.com"]}]},
        {"hostAliases": [{"ip": "192.0.2.1", "hostnames": ["store.example.com"]}]},
    ),
    "fewer searches": Legitimate(
        {"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}},
        {"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}},
    ),
    "a DNS server of the node": Legitimate(
        {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["169.254.20.10"]}},
        {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["169.254.20.10"]}},
    ),
    "the owner of a shared file system": Legitimate(
        {
            "securityContext": {
                "runAsUser": 1234,
                "runAsGroup": 1234,
                "fsGroup": 5678,
                "supplementalGroups": [9012],
            }
        },
        {
            "securityContext": {
                "runAsUser": 1234,
                "fsGroup": 5678,
                "supplementalGroups": [9012],
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            }
        },
    ),
    "buffers of TCP": Legitimate(
        {
            "securityContext": {
                "sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "4096 131072 67108864"}]
            }
        },
        {
            "securityContext": {
                "sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "4096 131072 67108864"}]
            }
        },
    ),
    "files of huge pages": Legitimate(
        mounted("/pages", {"emptyDir": {"medium": "HugePages-2Mi"}}),
        {"containers": [{"volumeMounts": [{"name": "a", "mountPath": "/pages"}]}]},
        workers={"resources": {"limits": {"hugepages-2Mi": "64Mi", "memory": "8Gi"}}},
    ),
    "a sidecar for logs": Legitimate(
        sidecar(
            command=["logs"],
            env=[{"name": "LEVEL", "value": "info"}],
            resources={"requests": {"cpu": "100m"}, "limits": {"memory": "128Mi"}},
            volumeMounts=[{"name": "out", "mountPath": "/out", "readOnly": True}],
        ),
        {
            "initContainers": [
                {
                    "name": "a",
                    "restartPolicy": "Always",
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ]
        },
        workers={
            "volumes": [{"name": "out", "mountPath": "/out", "emptyDir": {}}],
            "initContainers": [
                {"name": "fetch", "image": "x", "resources": {"requests": {"cpu": 4}}}
            ],
        },
    ),
    "a low port": Legitimate(
        security(capabilities={"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}),
        {
            "containers": [
                {
                    "securityContext": {
                        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}
                    }
                }
            ]
        },
    ),
    "another user of a sidecar with huge pages": Legitimate(
        sidecar(
            securityContext={"runAsUser": 1001, "readOnlyRootFilesystem": True},
            resources={"limits": {"hugepages-1Gi": "2Gi", "memory": "64Mi", "cpu": 1}},
        ),
        {
            "initContainers": [
                {
                    "name": "a",
                    "securityContext": {
                        "runAsUser": 1001,
                        "readOnlyRootFilesystem": True,
                        "allowPrivilegeEscalation": False,
                    },
                }
            ]
        },
    ),
    "a volume of the job at a second path": Legitimate(
        trainer(volumeMounts=[{"name": "data", "mountPath": "/mnt/data", "readOnly": True}]),
        {"containers": [{"volumeMounts": [{"name": "data", "mountPath": "/mnt/data"}]}]},
        workers={"volumes": [{"name": "data", "mountPath": "/data", "emptyDir": {}}]},
    ),
    "root": Legitimate(
        {"securityContext": ROOT}, {"securityContext": {**ROOT, "fsGroup": 65532}}, "baseline"
    ),
    "root that locks memory": Legitimate(
        ROOT_WITH_IPC_LOCK,
        {
            "securityContext": ROOT,
            "containers": [
                {"securityContext": {"capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]}}}
            ],
        },
        "privileged",
    ),
    "devices and network of the node": Legitimate(
        {
            "hostNetwork": True,
            "dnsPolicy": "ClusterFirstWithHostNet",
            **mounted("/dev/infiniband", DEVICES),
        },
        {
            "hostNetwork": True,
            "dnsPolicy": "ClusterFirstWithHostNet",
            "volumes": [{"name": "a", **DEVICES}],
            "containers": [{"volumeMounts": [{"name": "a", "mountPath": "/dev/infiniband"}]}],
        },
        "privileged",
    ),
    "a privileged sidecar": Legitimate(
        {
            **sidecar(
                securityContext={**ROOT, "privileged": True, "allowPrivilegeEscalation": True},
                volumeMounts=[{"name": "lib", "mountPath": "/usr/local/nvidia"}],
            ),
            "volumes": [{"name": "lib", "hostPath": {"path": "/home/kubernetes/bin/nvidia"}}],
            **trainer(volumeMounts=[{"name": "lib", "mountPath": "/usr/local/nvidia"}]),
        },
        {
            "initContainers": [
                {
                    "name": "a",
                    "securityContext": {"privileged": True, "allowPrivilegeEscalation": True},
                }
            ],
            "containers": [{"volumeMounts": [{"name": "lib", "mountPath": "/usr/local/nvidia"}]}],
        },
        "privileged",
    ),
}

_C, _I, _V = (f"{SPEC}.{name}[0]" for name in ("containers", "initContainers", "volumes"))
_VOLUMES = {"volumes": [{"name": "data", "mountPath": "/data", "emptyDir": {}}]}
_FETCH = {"initContainers": [{"name": "fetch", "image": "x"}]}

ATTACKS: list[tuple[Object, str, Object]] = [
    # Fields that are not of the subset: nothing of the operator can be named.
    ({"affinity": {"nodeAffinity": {}}}, f"{SPEC}.affinity", {}),
    ({"nodeName": "node-b"}, f"{SPEC}.nodeName", {}),
    ({"nodeSelector": {"a": "b"}}, f"{SPEC}.nodeSelector", {}),
    ({"schedulerName": "mine"}, f"{SPEC}.schedulerName", {}),
    ({"tolerations": [{"operator": "Exists"}]}, f"{SPEC}.tolerations", {}),
    ({"hostname": "other"}, f"{SPEC}.hostname", {}),
    ({"subdomain": "other"}, f"{SPEC}.subdomain", {}),
    ({"restartPolicy": "Always"}, f"{SPEC}.restartPolicy", {}),
    ({"priorityClassName": "system-node-critical"}, f"{SPEC}.priorityClassName", {}),
    ({"serviceAccountName": "root"}, f"{SPEC}.serviceAccountName", {}),
    ({"automountServiceAccountToken": True}, f"{SPEC}.automountServiceAccountToken", {}),
    ({"schedulingGates": [{"name": "x"}]}, f"{SPEC}.schedulingGates", {}),
    ({"ephemeralContainers": [{"name": "x"}]}, f"{SPEC}.ephemeralContainers", {}),
    ({"hostPID": True}, f"{SPEC}.hostPID", {}),
    ({"hostIPC": True}, f"{SPEC}.hostIPC", {}),
    ({"shareProcessNamespace": True}, f"{SPEC}.shareProcessNamespace", {}),
    ({"$patch": "replace"}, f"{SPEC}.$patch", {}),
    ({"securityContext": {"seccompProfile": {}}}, f"{SPEC}.securityContext.seccompProfile", {}),
    ({"containers": [{"name": "shell", "image": "x"}]}, f"{_C}.name", {}),
    (trainer(image="example.com/other:1"), f"{_C}.image", {}),
    (trainer(command=["sh"]), f"{_C}.command", {}),
    (trainer(env=[{"name": "WORLD_SIZE", "value": "1"}]), f"{_C}.env", {}),
    (trainer(resources={"limits": {"nvidia.com/gpu": 16}}), f"{_C}.resources", {}),
    (trainer(ports=[{"containerPort": 1, "hostPort": 1}]), f"{_C}.ports", {}),
    (trainer(lifecycle={"preStop": {}}), f"{_C}.lifecycle", {}),
    (security(readOnlyRootFilesystem=False), f"{_C}.securityContext.readOnlyRootFilesystem", {}),
    (security(procMount="Unmasked"), f"{_C}.securityContext.procMount", {}),
    ({"volumes": [{"name": "a", "csi": {"driver": "x"}}]}, f"{_V}.csi", {}),
    (sidecar(volumeDevices=[{"name": "a"}]), f"{_I}.volumeDevices", {}),
    # Names, mounts and variables of the contract.
    ({"volumes": [{"name": "llmtrain-job", "emptyDir": {}}]}, f"{_V}.name", {}),
    ({"volumes": [{"name": "llmtrain-shm", "emptyDir": {}}]}, f"{_V}.name", {}),
    ({"volumes": [{"name": "data", "hostPath": {"path": "/a"}}]}, f"{_V}.name", _VOLUMES),
    (mounted("/etc/llmtrain"), f"{_C}.volumeMounts[0].mountPath", {}),
    (mounted("/etc"), f"{_C}.volumeMounts[0].mountPath", {}),
    (mounted("/var/lib/llmtrain/x"), f"{_C}.volumeMounts[0].mountPath", {}),
    (mounted("/dev/shm", DEVICES), f"{_C}.volumeMounts[0].mountPath", {}),
    (mounted("/dev/termination-log", DEVICES), f"{_C}.volumeMounts[0].mountPath", {}),
    (mounted("/dev", DEVICES), f"{_C}.volumeMounts[0].mountPath", {}),
    (mounted("/dev/x"), f"{_C}.volumeMounts[0].mountPath", {}),
    (mounted("/proc/sys", DEVICES), f"{_C}.volumeMounts[0].mountPath", {}),
    (mounted("/usr/bin"), f"{_C}.volumeMounts[0].mountPath", {}),
    (mounted("/run/nvidia-container-devices/all"), f"{_C}.volumeMounts[0].mountPath", {}),
    (mounted("/data"), f"{_C}.volumeMounts[0].mountPath", _VOLUMES),
    (
        trainer(volumeMounts=[{"name": "llmtrain-job", "mountPath": "/x"}]),
        f"{_C}.volumeMounts[0].name",
        {},
    ),
    (
        sidecar(volumeMounts=[{"name": "llmtrain-job", "mountPath": "/x"}]),
        f"{_I}.volumeMounts[0].name",
        {},
    ),
    (
        sidecar(
            volumeMounts=[{"name": "data", "mountPath": "/var/run/nvidia-container-devices/all"}]
        ),
        f"{_I}.volumeMounts[0].mountPath",
        _VOLUMES,
    ),
    (
        sidecar(volumeMounts=[{"name": "data", "mountPath": "/proc"}]),
        f"{_I}.volumeMounts[0].mountPath",
        _VOLUMES,
    ),
    (sidecar(name="trainer"), f"{_I}.name", {}),
    (sidecar(name="fetch"), f"{_I}.name", _FETCH),
    (sidecar(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]), f"{_I}.env[0].name", {}),
    (sidecar(env=[{"name": "LLMTRAIN_RANKS", "value": "0"}]), f"{_I}.env[0].name", {}),
    (sidecar(env=[{"name": "LD_PRELOAD", "value": "/x"}]), f"{_I}.env[0].name", {}),
    (
        sidecar(envFrom=[{"prefix": "NVIDIA_", "secretRef": {"name": "x"}}]),
        f"{_I}.envFrom[0].prefix",
        {},
    ),
    (
        sidecar(resources={"limits": {"nvidia.com/gpu": 1}}),
        f"{_I}.resources.limits.nvidia.com/gpu",
        {},
    ),
    (
        sidecar(resources={"requests": {"rdma/hca": 1}, "limits": {"rdma/hca": 1}}),
        f"{_I}.resources.requests.rdma/hca",
        {},
    ),
    (
        {"hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a", "job-0-0.job.team.svc"]}]},
        f"{SPEC}.hostAliases[0].hostnames[1]",
        {},
    ),
    (
        {
            "hostAliases": [
                {"ip": "192.0.2.1", "hostnames": ["kubernetes.default.svc.cluster.local"]}
            ]
        },
        f"{SPEC}.hostAliases[0].hostnames[0]",
        {},
    ),
    # Paths of the node that are not paths.
    ({"volumes": [{"name": "a", "hostPath": {"path": "/"}}]}, f"{_V}.hostPath.path", {}),
    ({"volumes": [{"name": "a", "hostPath": {"path": "/a/../etc"}}]}, f"{_V}.hostPath.path", {}),
    # Contradictions that would end in a pod which never starts.
    ({"securityContext": {"runAsUser": 0}}, f"{SPEC}.securityContext.runAsUser", {}),
    (
        {"securityContext": ROOT, **security(runAsUser=0, runAsNonRoot=True)},
        f"{_C}.securityContext.runAsUser",
        {},
    ),
    (security(privileged=True), f"{_C}.securityContext.allowPrivilegeEscalation", {}),
    (
        security(capabilities={"add": ["SYS_ADMIN"]}),
        f"{_C}.securityContext.allowPrivilegeEscalation",
        {},
    ),
    (
        security(capabilities={"add": ["CAP_IPC_LOCK"]}),
        f"{_C}.securityContext.capabilities.add[0]",
        {},
    ),
    ({"hostNetwork": True}, f"{SPEC}.dnsPolicy", {}),
    (
        {
            "hostNetwork": True,
            "dnsPolicy": "ClusterFirstWithHostNet",
            "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "0"}]},
        },
        f"{SPEC}.securityContext.sysctls[0].name",
        {},
    ),
    ({"dnsPolicy": "None"}, f"{SPEC}.dnsConfig.nameservers", {}),
    (
        mounted("/pages", {"emptyDir": {"medium": "HugePages-1Gi"}}),
        f"{_V}.emptyDir.medium",
        {"resources": {"limits": {"hugepages-2Mi": "2Mi", "memory": "8Gi"}}},
    ),
    (trainer(volumeMounts=[{"name": "no", "mountPath": "/x"}]), f"{_C}.volumeMounts[0].name", {}),
    (
        sidecar(
            volumeMounts=[
                {"name": "data", "mountPath": "/x"},
                {"name": "data", "mountPath": "/x"},
            ]
        ),
        f"{_I}.volumeMounts[1].mountPath",
        _VOLUMES,
    ),
]
"""Patch, path of the refusal, other fields of `workers`. An operator that permits privileges
refuses them, too."""

PRIVILEGES: dict[str, Object] = {
    f"{SPEC}.hostNetwork": {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"},
    f"{_V}.hostPath": {"volumes": [{"name": "a", "hostPath": {"path": "/var/lib/kubelet"}}]},
    f"{SPEC}.securityContext.runAsUser": {"securityContext": ROOT},
    f"{SPEC}.securityContext.runAsNonRoot": {"securityContext": {"runAsNonRoot": False}},
    f"{_C}.securityContext.runAsUser": security(**ROOT),
    f"{_C}.securityContext.capabilities.add[1]": security(
        capabilities={"add": ["NET_BIND_SERVICE", "IPC_LOCK"]}
    ),
    f"{_C}.securityContext.capabilities.drop": security(capabilities={"drop": ["NET_RAW"]}),
    f"{_C}.securityContext.privileged": security(privileged=True, allowPrivilegeEscalation=True),
    f"{_C}.securityContext.allowPrivilegeEscalation": security(allowPrivilegeEscalation=True),
    f"{_I}.securityContext.privileged": sidecar(
        securityContext={"privileged": True, "allowPrivilegeEscalation": True}
    ),
    f"{_I}.securityContext.runAsUser": sidecar(securityContext=ROOT),
    f"{_I}.securityContext.capabilities.add[0]": sidecar(
        securityContext={"capabilities": {"add": ["NET_ADMIN"]}}
    ),
}
"""Patches that need the permission of the operator, by the path of the refusal without it."""
