"""Jobs for tests of the manifests."""

from __future__ import annotations

from typing import Any

from llmtrain_core.validation.check import Job, check
from llmtrain_operator.manifests.names import JobIdentity
from tests.support.operator_harness.harness import job_object

IDENTITY = JobIdentity("team", "job", "11111111-2222-3333-4444-555555555555")
NODES = ("node-a", "node-b")
EVERYTHING: dict[str, Any] = {
    "priorityClassName": "high",
    "network": {"rdma": {"resource": "rdma/hca", "count": 2}, "nccl": {"NCCL_DEBUG": "INFO"}},
    "workers": {
        "command": ["torchrun"],
        "args": ["-m", "x"],
        "env": [{"name": "HELLO", "value": "$(WORLD)"}],
        "resources": {"requests": {"cpu": 4, "memory": "8Gi"}, "limits": {"memory": "16Gi"}},
        "shmSize": "2Gi",
        "volumes": [
            {
                "name": "data",
                "mountPath": "/data",
                "persistentVolumeClaim": {"claimName": "corpus", "readOnly": True},
            },
            {"name": "conf", "mountPath": "/conf", "configMap": {"name": "conf"}},
            {"name": "scratch", "mountPath": "/scratch", "emptyDir": {"sizeLimit": "1Gi"}},
        ],
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    },
}


def checked_job(**spec: Any) -> Job:
    found = check("job", job_object("job", "team", **spec)["spec"])
    assert isinstance(found, Job), found
    return found
