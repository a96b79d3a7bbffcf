"""The rows that are shipped, by family. docs/node-health.md lists them with their sources.

The sign of a condition differs by family: those of node problem detectors and of NVSentinel are
bad if True, those of the EKS node monitoring agent are bad if False. `Unknown` is never bad here: a
check that could not run says nothing about the node.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmtrain_core.node_health.rows import CORDON_ROW, HealthRow, RowKind, Strength

_AVOID, _LEAVE = Strength.AVOID, Strength.LEAVE

KUBERNETES = "Kubernetes documentation: Taints and Tolerations"
LIFECYCLE = "Kubernetes 1.37: feature gate NodeLifecycleConditions"
DEVICES = "Kubernetes documentation: Device Plugins"
NPD = "kubernetes/node-problem-detector: config/"
AKS = "Azure documentation: Node Problem Detector in AKS nodes"
EKS = "Amazon EKS documentation: node health and automatic node repair"
OKE = "oracle-quickstart/oci-hpc-oke: node problem detector and active health checks"
SENTINEL = "NVIDIA/NVSentinel: docs/INTEGRATIONS.md"
SENTINEL_STATE = "NVIDIA/NVSentinel: docs/runbooks, cordoned nodes"
DRIVER_UPGRADE = "NVIDIA/k8s-operator-libs: pkg/upgrade/consts.go"
AMD = "ROCm/gpu-operator: docs, device health and device configuration manager"
GKE = "GKE documentation: manage GPU node disruption"
GKE_HEALTH = "GoogleCloudPlatform/cluster-toolkit: cluster health scanner"
NTH = "aws/aws-node-termination-handler: pkg/node/node.go"
KARPENTER = "kubernetes-sigs/karpenter: pkg/apis/v1/taints.go"
AUTOSCALER = "kubernetes/autoscaler: cluster-autoscaler/FAQ.md"

UPGRADE_STATE = "nvidia.com/gpu-driver-upgrade-state"
SENTINEL_LABEL = "dgxc.nvidia.com/nvsentinel-state"
SPOT_SECONDS = 30.0
"""Seconds after which a job leaves a node that is taken away within about two minutes. The rest is
for the checkpoint that the trainer saves when it is stopped."""


def _conditions(
    family: str,
    types: Iterable[str],
    source: str,
    strength: Strength = _AVOID,
    status: str = "True",
    move_within: float | None = None,
) -> list[HealthRow]:
    return [
        HealthRow(
            f"{family}/{kind}",
            RowKind.CONDITION,
            kind,
            strength,
            status=status,
            move_within=move_within,
            source=source,
        )
        for kind in types
    ]


def _taint(
    name: str,
    key: str,
    source: str,
    strength: Strength = _LEAVE,
    values: tuple[str, ...] = (),
    move_within: float | None = None,
) -> HealthRow:
    return HealthRow(
        name,
        RowKind.TAINT,
        key,
        strength,
        values=values,
        move_within=move_within,
        source=source,
    )


def _label(
    name: str, key: str, values: tuple[str, ...], source: str, strength: Strength = _AVOID
) -> HealthRow:
    return HealthRow(name, RowKind.LABEL, key, strength, values=values, source=source)


_KUBERNETES = [
    HealthRow(CORDON_ROW, RowKind.CORDON, "", _LEAVE, source=KUBERNETES),
    _taint("kubernetes/out-of-service", "node.kubernetes.io/out-of-service", KUBERNETES),
    HealthRow("kubernetes/gpu-allocatable", RowKind.RESOURCE, "*/gpu", _AVOID, source=DEVICES),
    *_conditions(
        "kubernetes",
        ("MaintenancePlanned", "MaintenanceInProgress", "DrainInProgress", "Drained"),
        LIFECYCLE,
        _LEAVE,
    ),
    *_conditions(
        "kubernetes",
        ("GracefulNodeShutdownInProgress",),
        LIFECYCLE,
        _LEAVE,
        move_within=SPOT_SECONDS,
    ),
]
_NODE_PROBLEM_DETECTORS = [
    *_conditions(
        "npd",
        (
            "KernelDeadlock",
            "ReadonlyFilesystem",
            "FrequentKubeletRestart",
            "FrequentContainerdRestart",
        ),
        NPD,
    ),
    *_conditions(
        "aks",
        (
            "GPUMissing",
            "NVLinkStatusInactive",
            "XIDErrors",
            "IBLinkFlapping",
            "GPUClockThrottling",
            "UnhealthyNvidiaDevicePlugin",
        ),
        AKS,
    ),
    *_conditions("aks", ("VMEventScheduled",), AKS, _LEAVE, move_within=SPOT_SECONDS),
    *_conditions(
        "eks",
        ("NetworkingReady", "KernelReady", "StorageReady", "ContainerRuntimeReady"),
        EKS,
        status="False",
    ),
    *_conditions(
        "eks", ("AcceleratedHardwareReady",), EKS, _LEAVE, status="False", move_within=300.0
    ),
    *_conditions(
        "oke",
        (
            "GpuCount",
            "GpuEcc",
            "GpuXid",
            "GpuRowRemap",
            "GpuBus",
            "GpuPcie",
            "GpuFabricMgr",
            "NvlinkSpeed",
            "DcgmiHealth",
            "RdmaLink",
            "RdmaLinkFlapping",
            "RdmaWpaAuth",
            "RdmaVfRoutes",
        ),
        OKE,
    ),
    HealthRow(
        "oke/MaintenanceFault",
        RowKind.CONDITION,
        "oci.oraclecloud.com/MaintenanceFault",
        _LEAVE,
        source=OKE,
    ),
    _label("oke/host-health", "oci.oraclecloud.com/host.health", ("UNHEALTHY",), OKE),
    _label(
        "oke/active-health-checks", "oke.oraclecloud.com/active-health-checks-*", ("fail",), OKE
    ),
]
_NVIDIA = [
    *_conditions(
        "nvsentinel",
        (
            *(
                f"Gpu{part}Watch"
                for part in (
                    "Mem",
                    "Thermal",
                    "Pcie",
                    "Power",
                    "Inforom",
                    "Sm",
                    "Nvlink",
                    "Mcu",
                    "Pmu",
                    "Driver",
                )
            ),
            "SysLogsXIDError",
            "SysLogsSXIDError",
            "SysLogsGPUFallenOff",
            "NVSwitchFatalError",
            "NVSwitchDown",
        ),
        SENTINEL,
    ),
    *_conditions("nvsentinel", ("CSPMaintenance",), SENTINEL, _LEAVE),
    _label(
        "nvsentinel/draining", SENTINEL_LABEL, ("quarantined", "draining"), SENTINEL_STATE, _LEAVE
    ),
    _label(
        "nvsentinel/remediating",
        SENTINEL_LABEL,
        (
            "drain-succeeded",
            "drain-failed",
            "remediating",
            "remediation-succeeded",
            "remediation-failed",
        ),
        SENTINEL_STATE,
    ),
    _label(
        "gpu-operator/driver-upgrade-drains",
        UPGRADE_STATE,
        ("cordon-required", "wait-for-jobs-required", "pod-deletion-required", "drain-required"),
        DRIVER_UPGRADE,
        _LEAVE,
    ),
    _label(
        "gpu-operator/driver-upgrade",
        UPGRADE_STATE,
        (
            "node-maintenance-required",
            "post-maintenance-required",
            "pod-restart-required",
            "validation-required",
            "uncordon-required",
            "upgrade-failed",
        ),
        DRIVER_UPGRADE,
    ),
]
_AMD = [
    _taint("amd/gpu-unhealthy", "amd-gpu-unhealthy", AMD, _AVOID),
    _taint("amd/device-configuration", "amd-dcm", AMD, values=("up",)),
    _label("amd/gpu-state", "metricsexporter.amd.com.gpu.*.state", ("unhealthy",), AMD),
    _label("amd/nic-state", "metricsexporter.amd.com.nic.*.state", ("unhealthy",), AMD),
]
_CLOUDS = [
    _taint(
        "gke/impending-termination",
        "cloud.google.com/impending-node-termination",
        GKE,
        move_within=SPOT_SECONDS,
    ),
    _label(
        "gke/perform-maintenance", "cloud.google.com/perform-maintenance", ("true",), GKE, _LEAVE
    ),
    _label("gke/scheduled-maintenance", "cloud.google.com/scheduled-maintenance-time", (), GKE),
    _taint(
        "gke/health-scanner", "aiinfra.diagrunner/bad-for-all", GKE_HEALTH, _AVOID, values=("true",)
    ),
    _taint(
        "aws/spot-interruption",
        "aws-node-termination-handler/spot-itn",
        NTH,
        move_within=SPOT_SECONDS,
    ),
    _taint("aws/scheduled-maintenance", "aws-node-termination-handler/scheduled-maintenance", NTH),
    _taint("aws/asg-termination", "aws-node-termination-handler/asg-lifecycle-termination", NTH),
    _taint("aws/rebalance", "aws-node-termination-handler/rebalance-recommendation", NTH),
    _taint("karpenter/disrupted", "karpenter.sh/disrupted", KARPENTER),
    _taint("karpenter/disruption", "karpenter.sh/disruption", KARPENTER),
    _taint("cluster-autoscaler/deletion", "ToBeDeletedByClusterAutoscaler", AUTOSCALER),
]

DEFAULT_ROWS: tuple[HealthRow, ...] = (
    *_KUBERNETES,
    *_NODE_PROBLEM_DETECTORS,
    *_NVIDIA,
    *_AMD,
    *_CLOUDS,
)
