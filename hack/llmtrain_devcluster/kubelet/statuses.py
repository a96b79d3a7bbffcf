"""Build node and pod statuses as a kubelet does: pure functions that return JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmtrain_core.api.defaults import TERMINATION_MESSAGE_BYTES

Object = dict[str, Any]

# In a strategic merge patch: do not merge this list with what is there.
REPLACE = {"$patch": "replace"}


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """Name, labels and resources of a node."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0
    rdma: int = 0
    cpu: str = "64"
    memory: str = "512Gi"
    pods: int = 110
    resources: Mapping[str, str] = field(default_factory=dict)

    def capacity(self) -> dict[str, str]:
        """Return the resources, in the form of the API."""
        found = {"cpu": self.cpu, "memory": self.memory, "pods": str(self.pods)}
        if self.gpus:
            found["nvidia.com/gpu"] = str(self.gpus)
        if self.rdma:
            found["rdma/hca"] = str(self.rdma)
        return found | {"ephemeral-storage": "100Gi"} | dict(self.resources)


def node_object(spec: NodeSpec) -> Object:
    """Return the Node object to create."""
    labels = {
        "kubernetes.io/hostname": spec.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        **spec.labels,
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": spec.name, "labels": labels},
        "spec": {},
    }


def ready_condition(status: str) -> Object:
    """Return a node's Ready condition: "True", "False", or "Unknown" (no heartbeat)."""
    reasons = {
        "True": ("KubeletReady", "kubelet is posting ready status"),
        "False": ("KubeletNotReady", "container runtime is down"),
        "Unknown": ("NodeStatusUnknown", "Kubelet stopped posting node status."),
    }
    reason, message = reasons[status]
    return {
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now(),
        "lastTransitionTime": now(),
    }


def node_status(spec: NodeSpec, address: str = "", port: int = 0) -> Object:
    """Return the status of a healthy node."""
    no_pressure = [
        {"type": kind, "status": "False", "reason": f"KubeletHasNo{kind}", "message": "enough"}
        for kind in ("MemoryPressure", "DiskPressure", "PIDPressure")
    ]
    status: Object = {
        "capacity": spec.capacity(),
        "allocatable": spec.capacity(),
        "conditions": [*no_pressure, ready_condition("True")],
        "addresses": [{"type": "Hostname", "address": spec.name}],
    }
    if address:
        status["addresses"].insert(0, {"type": "InternalIP", "address": address})
    if port:
        status["daemonEndpoints"] = {"kubeletEndpoint": {"Port": port}}
    return status


def waiting(reason: str, message: str = "") -> Object:
    """Return the state of a container that has not started."""
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def running(started_at: str) -> Object:
    """Return the state of a container that runs."""
    return {"running": {"startedAt": started_at}}


def terminated(
    code: int, started_at: str, *, reason: str = "", message: str = "", container_id: str = ""
) -> Object:
    """Return the state of a container that has ended."""
    state: Object = {
        "exitCode": code,
        "reason": reason or ("Completed" if code == 0 else "Error"),
        "startedAt": started_at,
        "finishedAt": now(),
    }
    if message:
        state["message"] = message.encode()[-TERMINATION_MESSAGE_BYTES:].decode(errors="ignore")
    if container_id:
        state["containerID"] = container_id
    return {"terminated": state}


@dataclass(frozen=True, slots=True)
class ContainerView:
    """The status of one container of a pod."""

    name: str
    image: str
    state: Object
    last_state: Object = field(default_factory=dict)
    ready: bool = False
    restarts: int = 0
    container_id: str = ""
    resources: Object | None = None
    """What the kubelet has allocated to the container. If a kubelet does not report it, the API
    server refuses to resize the pod."""

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None before the end."""
        ended = self.state.get("terminated")
        return int(ended["exitCode"]) if ended else None

    def to_json(self) -> Object:
        """Return the entry of `status.containerStatuses`."""
        ran = "waiting" not in self.state
        found = {
            "name": self.name,
            "image": self.image,
            "imageID": f"devcluster://{self.image}" if ran else "",
            "containerID": self.container_id,
            "state": self.state,
            "lastState": self.last_state,
            "ready": self.ready,
            "started": "running" in self.state,
            "restartCount": self.restarts,
        }
        if ran and self.resources is not None:
            found["resources"] = self.resources
            found["allocatedResources"] = self.resources.get("requests", {})
        return found


@dataclass(frozen=True, slots=True)
class PodView:
    """The status of one pod."""

    phase: str
    containers: Sequence[ContainerView]
    init_containers: Sequence[ContainerView] = ()
    pod_ip: str = ""
    host_ip: str = ""
    start_time: str = ""
    reason: str = ""
    message: str = ""

    def to_json(self) -> Object:
        """Return a strategic merge patch of `status`."""
        status: Object = {
            "phase": self.phase,
            "conditions": self._conditions(),
            "containerStatuses": [view.to_json() for view in self.containers],
        }
        if self.init_containers:
            status["initContainerStatuses"] = [view.to_json() for view in self.init_containers]
        if self.pod_ip:
            status |= {"podIP": self.pod_ip, "podIPs": [REPLACE, {"ip": self.pod_ip}]}
        if self.host_ip:
            status |= {"hostIP": self.host_ip, "hostIPs": [REPLACE, {"ip": self.host_ip}]}
        optional = {"startTime": self.start_time, "reason": self.reason, "message": self.message}
        return status | {key: value for key, value in optional.items() if value}

    def _conditions(self) -> list[Object]:
        ended = self.phase in ("Succeeded", "Failed")
        initialized = all(view.exit_code == 0 for view in self.init_containers)
        ready = not ended and all(view.ready for view in self.containers)
        truth = {
            "PodReadyToStartContainers": bool(self.pod_ip) and not ended,
            "Initialized": initialized,
            "Ready": ready and initialized,
            "ContainersReady": ready and initialized,
        }
        why = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(
            self.phase, "ContainersNotReady"
        )
        return [
            {
                "type": kind,
                "status": str(value),
                "lastTransitionTime": now(),
                "reason": why if "Ready" in kind and not value else None,
            }
            for kind, value in truth.items()
        ]


def without_times(status: Object) -> str:
    """Return a status as text, without transition times, to compare it."""
    conditions = [
        {key: value for key, value in condition.items() if key != "lastTransitionTime"}
        for condition in status.get("conditions", [])
    ]
    return json.dumps(status | {"conditions": conditions}, sort_keys=True)
