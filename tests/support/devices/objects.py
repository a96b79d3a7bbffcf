"""ResourceSlices, DeviceClasses and ResourceClaims of a fake driver, as Kubernetes objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Object = dict[str, Any]

GPU_DRIVER, NIC_DRIVER = "gpu.example.com", "nic.example.com"
GPU_CLASS, NIC_CLASS = "gpu.example.com", "rdma.example.com"
PORT_DRIVER = PORT_CLASS = "ports.example.com"
"""Ports of a storage network, which all nodes reach."""
CHANNEL_DRIVER = "compute-domain.nvidia.com"
CHANNEL_CLASS = "compute-domain-default-channel.nvidia.com"
ROOT = "resource.kubernetes.io/pcieRoot"


def device(name: str, kind: str, **attributes: str | int) -> Object:
    """Return a device with a type and other attributes of its driver, and its PCIe root."""
    root = attributes.pop("root", None)
    found: Object = {"type": {"string": kind}}
    for key, value in attributes.items():
        found[key] = {"string": value} if isinstance(value, str) else {"int": value}
    if root is not None:
        found[ROOT] = {"string": root}
    return {"name": name, "attributes": found}


def resource_slice(
    node: str, driver: str, devices: Sequence[Object], generation: int = 1, slices: int = 1
) -> Object:
    """Return one of the slices of the pool of a node."""
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node}-{driver}"},
        "spec": {
            "driver": driver,
            "nodeName": node,
            "pool": {"name": node, "generation": generation, "resourceSliceCount": slices},
            "devices": list(devices),
        },
    }


def gpus(node: str, count: int, per_root: int = 1, **attributes: str | int) -> Object:
    """Return the slice of a node with GPUs, of which some share a PCIe root."""
    found = [
        device(f"gpu-{index}", "gpu", root=f"pci-{index // per_root}", **attributes)
        for index in range(count)
    ]
    return resource_slice(node, GPU_DRIVER, found)


def nics(node: str, roots: Sequence[int]) -> Object:
    """Return the slice of a node with a NIC at each of these PCIe roots."""
    found = [device(f"nic-{index}", "nic", root=f"pci-{root}") for index, root in enumerate(roots)]
    return resource_slice(node, NIC_DRIVER, found)


def ports(count: int, name: str = "ports", **attributes: str | int) -> Object:
    """Return a slice with devices that all nodes reach."""
    found = [device(f"port-{index}", "port", **attributes) for index in range(count)]
    raw = resource_slice(name, PORT_DRIVER, found)
    del raw["spec"]["nodeName"]
    raw["spec"]["allNodes"] = True
    return raw


def device_class(name: str, *selectors: str, extended: str = "", created: str = "") -> Object:
    spec: Object = {"selectors": [{"cel": {"expression": text}} for text in selectors]}
    if extended:
        spec["extendedResourceName"] = extended
    metadata = {"name": name, **({"creationTimestamp": created} if created else {})}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": metadata,
        "spec": spec,
    }


def of_driver(name: str, driver: str, kind: str) -> Object:
    """Return a class with the selector that NVIDIA's driver has."""
    text = f"device.driver == '{driver}' && device.attributes['{driver}'].type == '{kind}'"
    return device_class(name, text)


CLASSES = (of_driver(GPU_CLASS, GPU_DRIVER, "gpu"), of_driver(NIC_CLASS, NIC_DRIVER, "nic"))
CHANNELS = of_driver(CHANNEL_CLASS, CHANNEL_DRIVER, "channel")


PORTS = of_driver(PORT_CLASS, PORT_DRIVER, "port")


def channel(node: str) -> Object:
    """Return the slice of a node with the channel by which pods join a ComputeDomain."""
    return resource_slice(node, CHANNEL_DRIVER, [device("channel-0", "channel")])


def claim(
    uid: str,
    node: str,
    *devices: tuple[str, str],
    pod: str = "",
    group: str = "",
    **annotations: str,
) -> Object:
    """Return an allocated claim; `devices` are pairs of driver and name.

    It is reserved for a pod or for a PodGroup.
    """
    results = [
        {"request": "r", "driver": driver, "pool": node, "device": name} for driver, name in devices
    ]
    users = [{"resource": "pods", "name": pod, "uid": pod}] if pod else []
    if group:
        kind = {"apiGroup": "scheduling.k8s.io", "resource": "podgroups"}
        users.append({**kind, "name": group, "uid": group})
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {
            "uid": uid,
            "name": uid,
            "namespace": "team",
            "annotations": {key.replace("__", "/"): text for key, text in annotations.items()},
        },
        "spec": {},
        "status": {"allocation": {"devices": {"results": results}}, "reservedFor": users},
    }


def claims_of_workers(
    count: int = 2, nics: int = 0, per_pod: int = 1, aligned: bool = False
) -> list[Object]:
    """Return `workers.deviceClaims` with GPUs, and with NICs next to them."""
    requests = [{"name": "gpu", "deviceClassName": GPU_CLASS, "count": count, "gpus": True}]
    if nics:
        requests.append({"name": "nic", "deviceClassName": NIC_CLASS, "count": nics})
    found: Object = {"name": "devices", "requests": requests}
    if per_pod > 1:
        found["claimsPerPod"] = per_pod
    if aligned:
        found["constraints"] = [{"matchAttribute": ROOT}]
    return [found]


def claim_of_gang(count: int = 1, name: str = "storage", **request: Any) -> Object:
    """Return an item of `workers.deviceClaims` that all pods share."""
    wanted = {"name": "port", "deviceClassName": PORT_CLASS, "count": count, **request}
    return {"name": name, "scope": "gang", "requests": [wanted]}
