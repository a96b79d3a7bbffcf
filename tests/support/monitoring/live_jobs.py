"""Jobs for a live Prometheus: one trains across two racks, others wait, do not start, or fail."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from tests.support.paths import EXAMPLES

NAMESPACE, RUN, FAILING = "team", "run", "wrong"
IDLE_HOST = f"{RUN}-0-1"
"""The pod whose second GPU is idle."""
CLAIM = "data"
_EXAMPLE = yaml.safe_load((EXAMPLES / "sotu-3d.yaml").read_text())


def starting_jobs() -> list[dict[str, Any]]:
    """Return jobs that get nodes: one trains, one does not start, and one fails."""
    missing = {"sources": [{"name": "a", "uri": "file:///no/folder"}]}
    return [
        _trains(),
        _without_image(_job("stuck", nodes=1)),
        _job(FAILING, nodes=1, data=missing),
    ]


def waiting_jobs() -> list[dict[str, Any]]:
    """Return jobs that wait for different reasons."""
    return [
        _job("wide", nodes=4),
        _job("near", nodes=2, topology={"require": "leaf"}),
        _job("lost", nodes=1, topology={"require": "no-such-level"}),
    ]


def _trains() -> dict[str, Any]:
    """Return a job of two nodes whose GPUs are shown by the stand-in of the driver."""
    found = _job(RUN, nodes=2, checkpoint={"uri": "file:///data/run", "everySteps": 10})
    spec = found["spec"]
    spec["training"] |= {"steps": 100_000, "collectiveProbe": {"everySteps": 10}}
    spec["workers"] |= {
        "volumes": [
            {
                "name": CLAIM,
                "mountPath": "/data",
                "persistentVolumeClaim": {"claimName": CLAIM},
            }
        ],
        "env": [
            {"name": "LD_LIBRARY_PATH", "value": "/data/driver"},
            {"name": "IDLE_HOST", "value": IDLE_HOST},
        ],
    }
    return found


def _without_image(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job whose pods do not start."""
    job["spec"]["workers"]["image"] = "example.com/no-such-image:1"
    return job


def _job(name: str, nodes: int, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(_EXAMPLE)
    found["metadata"] |= {"name": name, "namespace": NAMESPACE}
    found["spec"]["parallelism"] = {"tensor": 2, "data": nodes}
    found["spec"] |= changes
    return found


def volume(folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a volume in a folder of this machine, and the claim for it."""
    common = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "",
        "volumeMode": "Filesystem",
    }
    size = {"storage": "1Gi"}
    source = {**common, "capacity": size, "hostPath": {"path": folder}}
    wanted = {**common, "volumeName": CLAIM, "resources": {"requests": size}}
    return (
        {"metadata": {"name": CLAIM}, "spec": source},
        {"metadata": {"name": CLAIM}, "spec": wanted},
    )
