"""What the node health table finds on nodes as agents and clouds mark them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llmtrain_core.node_health import DEFAULT_ROWS, DEFAULT_TABLE, HealthFinding, Strength
from llmtrain_core.node_health.table import EVIDENCE_LENGTH
from llmtrain_core.topology.inventory import Node, node_from_raw
from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

GPU = "nvidia.com/gpu"
HEALTHY = (
    ("Ready", "True"),
    ("MemoryPressure", "False"),
    ("KernelDeadlock", "False"),
    ("GPUMissing", "False"),
    ("GpuXid", "Unknown"),
    ("SysLogsXIDError", "False"),
    ("AcceleratedHardwareReady", "True"),
    ("KernelReady", "Unknown"),
    ("VMEventScheduled", "False"),
    ("SomethingNew", "True"),
)
"""A node with all agents at once, and nothing wrong: the signs differ."""


def raw(
    *conditions: tuple[str, str],
    labels: dict[str, str] | None = None,
    taint: tuple[str, str, str] | None = None,
    cordoned: bool = False,
    gpus: tuple[int, int] = (8, 8),
) -> dict[str, Any]:
    listed = {**dict(HEALTHY), **dict(conditions)}
    spec: dict[str, Any] = {"unschedulable": True} if cordoned else {}
    if taint:
        spec["taints"] = [dict(zip(("key", "value", "effect"), taint, strict=True))]
    return {
        "metadata": {
            "name": "n",
            "labels": {"cloud.google.com/gke-spot": "true", **(labels or {})},
        },
        "spec": spec,
        "status": {
            "conditions": [{"type": kind, "status": status} for kind, status in listed.items()],
            "capacity": {GPU: str(gpus[1]), "cpu": "100", "memory": "100Gi"},
            "allocatable": {GPU: str(gpus[0]), "cpu": "96", "memory": "90Gi"},
        },
    }


def node(*conditions: tuple[str, str], **more: Any) -> Node:
    return node_from_raw(raw(*conditions, **more))


def label(key: str, value: str) -> Node:
    return node(labels={key: value})


def taint(key: str, value: str = "", effect: str = "NoSchedule") -> Node:
    return node(taint=(key, value, effect))


UPGRADE, SENTINEL = "nvidia.com/gpu-driver-upgrade-state", "dgxc.nvidia.com/nvsentinel-state"
MARKED = {
    "kubernetes/cordon": (node(cordoned=True), "leave"),
    "kubernetes/gpu-allocatable": (node(gpus=(7, 8)), "avoid"),
    "kubernetes/MaintenancePlanned": (node(("MaintenancePlanned", "True")), "leave"),
    "npd/KernelDeadlock": (node(("KernelDeadlock", "True")), "avoid"),
    "aks/GPUMissing": (node(("GPUMissing", "True")), "avoid"),
    "aks/VMEventScheduled": (node(("VMEventScheduled", "True")), "leave"),
    "eks/AcceleratedHardwareReady": (node(("AcceleratedHardwareReady", "False")), "leave"),
    "eks/KernelReady": (node(("KernelReady", "False")), "avoid"),
    "oke/GpuXid": (node(("GpuXid", "True")), "avoid"),
    "oke/MaintenanceFault": (node(("oci.oraclecloud.com/MaintenanceFault", "True")), "leave"),
    "oke/host-health": (label("oci.oraclecloud.com/host.health", "UNHEALTHY"), "avoid"),
    "oke/active-health-checks": (
        label("oke.oraclecloud.com/active-health-checks-nccl-tests", "fail"),
        "avoid",
    ),
    "nvsentinel/SysLogsXIDError": (node(("SysLogsXIDError", "True")), "avoid"),
    "nvsentinel/draining": (label(SENTINEL, "quarantined"), "leave"),
    "nvsentinel/remediating": (label(SENTINEL, "drain-succeeded"), "avoid"),
    "gpu-operator/driver-upgrade-drains": (label(UPGRADE, "wait-for-jobs-required"), "leave"),
    "gpu-operator/driver-upgrade": (label(UPGRADE, "validation-required"), "avoid"),
    "amd/gpu-unhealthy": (taint("amd-gpu-unhealthy"), "avoid"),
    "amd/device-configuration": (taint("amd-dcm", "up", "NoExecute"), "leave"),
    "amd/gpu-state": (label("metricsexporter.amd.com.gpu.3.state", "unhealthy"), "avoid"),
    "gke/impending-termination": (taint("cloud.google.com/impending-node-termination"), "leave"),
    "gke/health-scanner": (taint("aiinfra.diagrunner/bad-for-all", "true"), "avoid"),
    "gke/scheduled-maintenance": (
        label("cloud.google.com/scheduled-maintenance-time", "1780000000"),
        "avoid",
    ),
    "aws/spot-interruption": (taint("aws-node-termination-handler/spot-itn", "1"), "leave"),
    "karpenter/disrupted": (taint("karpenter.sh/disrupted"), "leave"),
    "cluster-autoscaler/deletion": (taint("ToBeDeletedByClusterAutoscaler", "17"), "leave"),
}


@pytest.mark.parametrize("row", MARKED)
def test_the_marks_of_each_agent_and_cloud(row: str) -> None:
    marked, strength = MARKED[row]
    [found] = marked.health
    assert (found.row, "leave" if found.leave else "avoid") == (row, strength)
    assert marked.leaving == (found if strength == "leave" else None)
    assert marked.avoided is (row != "kubernetes/cordon")  # which is a state of its own


@pytest.mark.parametrize(
    "healthy",
    [
        node(),
        label(UPGRADE, "upgrade-done"),
        label(UPGRADE, "upgrade-required"),  # all nodes are, until each has its turn
        label("oci.oraclecloud.com/host.health", "HEALTHY"),
        label("oke.oraclecloud.com/active-health-checks-nccl-tests", "pass"),
        label("metricsexporter.amd.com.gpu.3.state", "healthy"),
        taint("amd-dcm", "down"),
        taint("DeletionCandidateOfClusterAutoscaler", "17", "PreferNoSchedule"),  # it is only idle
        taint("kubernetes.azure.com/scalesetpriority", "spot"),  # a kind of node, no fault
        taint(GPU, "present"),
    ],
)
def test_what_is_no_fault_has_no_effect(healthy: Node) -> None:
    assert healthy.health == ()


def test_the_evidence_is_named_and_bounded() -> None:
    found = raw()
    condition = {
        "type": "GpuXid",
        "status": "True",
        "reason": "GpuXid\n" + "x" * 900,
        "message": "any text",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    found["status"]["conditions"].append(condition)
    [finding] = node_from_raw(found).health
    assert finding.evidence.startswith("condition GpuXid=True, reason GpuXid xxx")
    assert len(finding.evidence) == EVIDENCE_LENGTH and "\n" not in finding.evidence
    assert finding.since == "2026-01-01T00:00:00Z"
    spot = taint("aws-node-termination-handler/spot-itn", "1").health[0]
    assert spot.text == (
        "aws/spot-interruption: taint aws-node-termination-handler/spot-itn=1:NoSchedule"
    )
    assert spot.move_within == 30.0
    assert node(gpus=(0, 8)).health[0].evidence == f"0 of 8 {GPU} allocatable"


def test_what_jobs_leave_comes_first() -> None:
    several = node(("GPUMissing", "True"), ("VMEventScheduled", "True"), cordoned=True, gpus=(7, 8))
    assert [finding.row for finding in several.health] == [
        "kubernetes/cordon",
        "aks/VMEventScheduled",
        "kubernetes/gpu-allocatable",
        "aks/GPUMissing",
    ]
    assert several.leaving == HealthFinding(
        "kubernetes/cordon", "cordoned", leave=True, bounded=False
    )


def test_only_what_kube_scheduler_does_not_refuse_anyway_is_bounded() -> None:
    key = "karpenter.sh/disrupted"
    assert [taint(key, "", effect).health[0].bounded for effect in ("NoSchedule", "NoExecute")] == [
        False,
        False,
    ]
    assert taint(key, "", "PreferNoSchedule").health[0].bounded
    assert node(("GPUMissing", "True")).health[0].bounded


def test_every_row_has_a_unique_name_a_key_and_a_source_in_the_docs() -> None:
    page = (ROOT / "docs" / "node-health.md").read_text()
    names = [row.name for row in DEFAULT_ROWS]
    assert len(names) == len(set(names))
    for row in DEFAULT_ROWS:
        assert re.fullmatch(r"[-a-z]+/[-A-Za-z]+", row.name), row.name
        assert row.source and row.source in page, row.name
        assert row.name.split("/")[1] in page and (row.key in page), row.name
        assert row.strength != Strength.OFF
    assert DEFAULT_TABLE.rows == DEFAULT_ROWS
