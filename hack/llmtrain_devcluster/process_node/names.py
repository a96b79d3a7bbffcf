"""The DNS names of a cluster as lines of /etc/hosts: pure functions."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Object = dict[str, Any]

DOMAIN = "cluster.local"
HEADER = "127.0.0.1 localhost\n::1 localhost\n"

# Only /etc/hosts: otherwise a pod would query the resolver of the machine.
NSSWITCH = "passwd: files\ngroup: files\nhosts: files\nprotocols: files\nservices: files\n"


def pod_lines(address: str, hostname: str, subdomain: str, namespace: str) -> str:
    """Return the lines of /etc/hosts for the pod itself."""
    full = f" {hostname}.{subdomain}.{namespace}.svc.{DOMAIN}" if subdomain else ""
    return f"{HEADER}{address}{full} {hostname}\n"


def cluster_lines(pods: Iterable[Object], services: Iterable[Object]) -> dict[str, str]:
    """Return the lines for services and their pods, by the namespace of the reader.

    The key "" is for namespaces without services: it has full names only.
    """
    by_namespace: dict[str, list[Object]] = defaultdict(list)
    for pod in pods:
        if _has_address(pod):
            by_namespace[pod["metadata"]["namespace"]].append(pod)
    names: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for service in services:
        namespace = service["metadata"]["namespace"]
        names[namespace] += _service_names(service, by_namespace[namespace])
    full = {
        namespace: "".join(
            f"{address} {name}.{namespace}.svc.{DOMAIN} {name}.{namespace}.svc {name}.{namespace}\n"
            for address, name in sorted(pairs)
        )
        for namespace, pairs in names.items()
    }
    everything = "".join(text for _, text in sorted(full.items()))
    short = {
        namespace: "".join(f"{address} {name}\n" for address, name in sorted(pairs))
        for namespace, pairs in names.items()
    }
    return {"": everything} | {name: everything + text for name, text in short.items()}


def _service_names(service: Object, pods: Iterable[Object]) -> Iterable[tuple[str, str]]:
    """Yield (address, name below the namespace) for a service and its pods' host names.

    A service with a virtual IP gets the addresses of its pods: there is no kube-proxy.
    """
    selector = service["spec"].get("selector")
    if not selector:
        return
    name = service["metadata"]["name"]
    unready_too = bool(service["spec"].get("publishNotReadyAddresses"))
    for pod in pods:
        if not _selects(selector, pod) or not (unready_too or _is_ready(pod)):
            continue
        address = pod["status"]["podIP"]
        yield address, name
        if pod["spec"].get("hostname") and pod["spec"].get("subdomain") == name:
            yield address, f"{pod['spec']['hostname']}.{name}"


def _has_address(pod: Object) -> bool:
    status = pod.get("status") or {}
    return bool(status.get("podIP")) and status.get("phase") not in ("Succeeded", "Failed")


def _is_ready(pod: Object) -> bool:
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = pod["status"].get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _selects(selector: Mapping[str, str], pod: Object) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in selector.items())


def rewrite(path: Path, text: str) -> None:
    """Write a file in place, because containers have its inode mounted.

    Write before truncating, so that a reader never finds the file empty.
    """
    content = text.encode()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(handle, content, 0)
        os.ftruncate(handle, len(content))
    finally:
        os.close(handle)
