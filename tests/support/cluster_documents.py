"""One valid file of every kind that the command line reads."""

from __future__ import annotations

from typing import Any

from llmtrain_core.images import TRAINER

LEAF, SPINE = "network.topology.nvidia.com/leaf", "network.topology.nvidia.com/spine"

JOB: dict[str, Any] = {
    "apiVersion": "llmtrain.dev/v1alpha1",
    "kind": "LLMTrainingJob",
    "metadata": {"name": "example", "namespace": "lab", "annotations": {"a": "b"}},
    "spec": {
        "model": {"preset": "tiny"},
        "data": {"sources": [{"name": "text", "uri": "file:///text"}]},
        "training": {"steps": 10, "globalBatchSize": 48},
        "parallelism": {"tensor": 2, "data": 2},
        "workers": {"gpusPerNode": 2, "image": TRAINER},
    },
}


def _node(name: str) -> dict[str, Any]:
    labels = {LEAF: "leaf-1", SPINE: "spine-1", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "unschedulable": False,
            "taints": [{"key": "k", "value": "v", "effect": "PreferNoSchedule"}],
        },
        "status": {
            "allocatable": {"cpu": "8", "nvidia.com/gpu": "2"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


_POD = {
    "kind": "Pod",
    "metadata": {
        "name": "example-0",
        "namespace": "lab",
        "uid": "a",
        "labels": {"llmtrain.dev/job-name": "example", "llmtrain.dev/node-index": "0"},
        "ownerReferences": [{"uid": "b", "kind": "LLMTrainingJob", "controller": True}],
    },
    "spec": {
        "nodeName": "a",
        "initContainers": [{"name": "i", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
        "containers": [
            {
                "name": "trainer",
                "env": [{"name": "LLMTRAIN_RANKS", "value": "0"}],
                "resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"cpu": "1"}},
            }
        ],
    },
    "status": {"phase": "Running"},
}

_PLACEMENT = {
    "levels": [{"level": "leaf"}, {"level": "node"}],
    "blocks": [{"path": "leaf-1", "nodes": ["a"]}],
}

DOCUMENTS: dict[str, dict[str, Any]] = {
    "job": JOB,
    "nodes": {"kind": "NodeList", "items": [_node("a"), _node("b")]},
    "pods": {"kind": "PodList", "items": [_POD]},
    "jobs": {"kind": "List", "items": [{**JOB, "status": {"placement": _PLACEMENT}}]},
    "fabric": {
        "spec": {
            "levels": [
                {"name": "leaf", "nodeLabel": LEAF, "oversubscription": 2},
                {"name": "node", "nodeLabel": "kubernetes.io/hostname"},
            ],
            "nics": {"perNode": 8, "gbitsPerSecond": 400},
        }
    },
}
