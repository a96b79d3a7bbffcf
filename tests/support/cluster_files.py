"""Nodes and pods as kubectl prints them, for tests of commands that read files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LEAF = "network.topology.nvidia.com/leaf"
SPINE = "network.topology.nvidia.com/spine"
GPU = "nvidia.com/gpu"
Shell = Callable[..., tuple[int, str, str]]


def node(name: str, gpus: int = 8, **labels: str) -> dict[str, Any]:
    keys = {"spine": SPINE, "leaf": LEAF}
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": {keys[key]: v for key, v in labels.items()}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "96", GPU: str(gpus)},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod(name: str, on: str, gpus: int, **labels: str) -> dict[str, Any]:
    limits = {"limits": {GPU: str(gpus)}}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "team", "labels": labels},
        "spec": {"nodeName": on, "containers": [{"name": "c", "resources": limits}]},
        "status": {"phase": "Running"},
    }


def listed(kind: str, *items: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": f"{kind}List", "items": list(items)}


def tree(leaves: int = 4, nodes: int = 4) -> list[dict[str, Any]]:
    return [
        node(f"n{leaf * nodes + index}", spine=f"s{leaf // 2}", leaf=f"l{leaf}")
        for leaf in range(leaves)
        for index in range(nodes)
    ]


def job(nodes: int, gpus: int = 8, **topology: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "parallelism": {"tensor": gpus, "data": nodes},
        "workers": {"gpusPerNode": gpus, "image": "example.com/trainer:1", "command": ["train"]},
    }
    if topology:
        spec["topology"] = topology
    return {
        "apiVersion": "llmtrain.dev/v1alpha1",
        "kind": "LLMTrainingJob",
        "metadata": {"name": "train"},
        "spec": spec,
    }
