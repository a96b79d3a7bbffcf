"""GKE: GPUDirect-TCPXO (A3 Mega) and GPUDirect-TCPX (A3 High), by the type of the accelerator.

A sidecar of Google moves the data, and NCCL of the node with its plugin replaces that of the image.
The pods are above the Pod Security level baseline: paths of the node, and a sidecar that is root
with `NET_ADMIN`. The NRI device injector gives it the GPUs of the trainer by an annotation, so that
it is not a privileged container. As a native sidecar it ends with the trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from llmtrain_core.api.job import NetworkProfile
from llmtrain_core.api.pod_patch import PodPatchSpec
from llmtrain_core.network.facts import ACCELERATOR, INSTANCE_TYPE, NodeFacts
from llmtrain_core.network.request import LIBRARY_PATH
from llmtrain_core.network.rows import (
    GKE_NETWORKING,
    CandidateNetwork,
    Need,
    NeedKind,
    PodParts,
    Value,
)

TCPXO_ACCELERATOR, TCPX_ACCELERATOR = "nvidia-h100-mega-80gb", "nvidia-h100-80gb"
TCPX_INSTANCE = "a3-highgpu-8g"
TCPXO_ROW, TCPX_ROW = "gke-tcpxo", "gke-tcpx"
_SAMPLES = "GoogleCloudPlatform/container-engine-accelerators: {}"
_TCPXO_POD = _SAMPLES.format("gpudirect-tcpxo/nccl-test-latest.yaml")
_TCPXO_VARIABLES = _SAMPLES.format("gpudirect-tcpxo/README.md")
_TCPX_POD = _SAMPLES.format("gpudirect-tcpx/nccl-test-latest.yaml")
_TCPX_VARIABLES = _SAMPLES.format("gpudirect-tcpx/nccl-config.yaml")
_TCPX_SOCKETS = (
    "GoogleCloudPlatform/cluster-toolkit: examples/machine-learning/a3-highgpu-8g/README.md"
)
_NETWORK_NAMES = "NVIDIA/cluster-readiness-engine: pkg/controller/gke_network_detect.go"
_LIBRARIES, _NODE_LIBRARIES = "/usr/local/nvidia/lib64", "/home/kubernetes/bin/nvidia/lib64"
_APERTURES, _SOCKETS = "/dev/aperture_devices", "/run/tcpx"
_HEALTH, _START = "/run/health-check", "/fts/entrypoint_rxdm_container.sh"
_GPUS = 8
_NVIDIA_DEVICES = (*(f"nvidia{index}" for index in range(_GPUS)), "nvidiactl", "nvidia-uvm")
_IMAGES = "us-docker.pkg.dev/gce-ai-infra/gpudirect-{}"


def _spec(
    name: str, paths: Mapping[str, str], trainer: Mapping[str, Any], sidecar: Mapping[str, Any]
) -> PodPatchSpec:
    """Return the parts of a pod. `paths` are those of the node by volume, without the common ones.

    The sidecar keeps the capabilities of the container runtime, as in the samples.
    """
    common = {"nvidia": _NODE_LIBRARIES, "sys": "/sys", "proc-sys": "/proc/sys"}
    places = {"nvidia": _LIBRARIES, "sys": "/hostsysfs", "proc-sys": "/hostprocsysfs"}
    mounts = [_mount(name, volume, path) for volume, path in places.items()]
    capabilities = {"drop": [], "add": sidecar["capabilities"]}
    security = {"runAsUser": 0, "runAsNonRoot": False, "readOnlyRootFilesystem": False}
    libraries = {"name": LIBRARY_PATH, "value": _LIBRARIES}
    daemon = {key: value for key, value in sidecar.items() if key not in ("capabilities", "mounts")}
    return PodPatchSpec.from_wire(
        {
            "volumes": [
                {"name": f"{name}-{volume}", "hostPath": {"path": path}}
                for volume, path in {**common, **paths}.items()
            ],
            "containers": [{"name": "trainer", **trainer}],
            "initContainers": [
                {
                    **daemon,
                    "name": f"{name}-daemon",
                    "restartPolicy": "Always",
                    "env": [libraries, *sidecar.get("env", ())],
                    "securityContext": {**security, "capabilities": capabilities},
                    "volumeMounts": [*mounts, *sidecar.get("mounts", ())],
                }
            ],
        }
    )


def _mount(name: str, volume: str, path: str) -> dict[str, str]:
    return {"name": f"{name}-{volume}", "mountPath": path}


def _annotations(name: str, devices: tuple[str, ...], source: str) -> tuple[Value, ...]:
    listed = "".join(f"- path: /dev/{device}\n" for device in devices)
    return (
        Value(f"devices.gke.io/container.{name}-daemon", listed, source),
        Value(f"{GKE_NETWORKING}default-interface", "eth0", source),
    )


TCPXO = PodParts(
    patch=_spec(
        "tcpxo",
        {"aperture-devices": _APERTURES},
        {
            "volumeMounts": [
                _mount("tcpxo", "nvidia", _LIBRARIES),
                _mount("tcpxo", "aperture-devices", _APERTURES),
            ]
        },
        {
            "image": _IMAGES.format("tcpxo/tcpgpudmarxd-dev:v1.0.21"),
            "command": ["/bin/sh", "-c"],
            "args": [f"chmod 755 {_START} && exec {_START} --num_hops=2"],
            "env": [{"name": "HEALTH_CHECK_LOG_FILE", "value": _HEALTH}],
            "startupProbe": {
                "exec": {"command": ["cat", _HEALTH]},
                "initialDelaySeconds": 1,
                "periodSeconds": 5,
                "timeoutSeconds": 1,
                "failureThreshold": 6,
            },
            "capabilities": ["NET_ADMIN", "NET_BIND_SERVICE"],
        },
    ),
    annotations=_annotations("tcpxo", (*_NVIDIA_DEVICES, "dmabuf_import_helper"), _TCPXO_POD),
    networks=8,
    networks_source=_NETWORK_NAMES,
    gpus=_GPUS,
    source=_TCPXO_POD,
)
TCPX = PodParts(
    patch=_spec(
        "tcpx",
        {"sockets": _SOCKETS},
        {
            "securityContext": {
                "runAsUser": 0,
                "runAsNonRoot": False,
                "capabilities": {"add": ["IPC_LOCK"]},
            },
            "volumeMounts": [
                _mount("tcpx", "nvidia", _LIBRARIES),
                _mount("tcpx", "sockets", _SOCKETS),
            ],
        },
        {
            "image": _IMAGES.format("tcpx/tcpgpudmarxd-dev:v2.0.12"),
            "command": [
                "/tcpgpudmarxd/build/app/tcpgpudmarxd",
                *("--gpu_nic_preset", "a3vm"),
                *("--gpu_shmem_type", "fd"),
                *("--uds_path", _SOCKETS),
                *("--setup_param", r"\"--verbose 128 2 0 \""),
            ],
            "capabilities": ["NET_ADMIN"],
            "mounts": [_mount("tcpx", "sockets", _SOCKETS)],
        },
    ),
    annotations=_annotations("tcpx", _NVIDIA_DEVICES, _TCPX_POD),
    networks=4,
    networks_source=_NETWORK_NAMES,
    gpus=_GPUS,
    source=_TCPX_POD,
)
PARTS: Mapping[str, PodParts] = MappingProxyType({TCPXO_ROW: TCPXO, TCPX_ROW: TCPX})
"""What the operator adds to pods, by row of the table."""
PARTS_OF_PROFILE: Mapping[NetworkProfile, PodParts] = MappingProxyType(
    {"tcpxo": TCPXO, "tcpx": TCPX}
)


def _values(source: str, **values: str) -> tuple[Value, ...]:
    return tuple(Value(f"NCCL_{name}", value, source) for name, value in values.items())


def _interfaces(parts: PodParts) -> str:
    return ",".join(f"eth{index}" for index in range(1, parts.networks + 1))


_VARIABLES = {
    TCPXO_ROW: (
        Value(LIBRARY_PATH, _LIBRARIES, _TCPXO_POD),
        Value("NCCL_FASTRAK_LLCM_DEVICE_DIRECTORY", _APERTURES, _TCPXO_POD),
        *_values(
            _TCPXO_VARIABLES,
            FASTRAK_CTRL_DEV="eth0",
            FASTRAK_IFNAME=_interfaces(TCPXO),
            SOCKET_IFNAME="eth0",
            CROSS_NIC="0",
            PROTO="Simple,LL128",
            MIN_NCHANNELS="4",
            TUNER_PLUGIN="libnccl-tuner.so",
            TUNER_CONFIG_PATH=f"{_LIBRARIES}/a3plus_tuner_config.textproto",
            SHIMNET_GUEST_CONFIG_CHECKER_CONFIG_FILE=(
                f"{_LIBRARIES}/a3plus_guest_config.textproto"
            ),
            NVLSTREE_MAX_CHUNKSIZE="131072",
            P2P_NET_CHUNKSIZE="524288",
            P2P_PCI_CHUNKSIZE="524288",
            P2P_NVL_CHUNKSIZE="1048576",
            FASTRAK_NUM_FLOWS="2",
            FASTRAK_USE_SNAP="1",
            FASTRAK_PLUGIN_ACCEPT_TIMEOUT_MS="600000",
            FASTRAK_ENABLE_CONTROL_CHANNEL="0",
            BUFFSIZE="8388608",
            NET_GDR_LEVEL="PIX",
            FASTRAK_ENABLE_HOTPATH_LOGGING="0",
            FASTRAK_USE_LLCM="1",
            NVLS_ENABLE="1",
        ),
    ),
    TCPX_ROW: (
        Value(LIBRARY_PATH, _LIBRARIES, _TCPX_POD),
        Value("NCCL_GPUDIRECTTCPX_UNIX_CLIENT_PREFIX", _SOCKETS, _TCPX_SOCKETS),
        *_values(
            _TCPX_VARIABLES,
            SOCKET_IFNAME="eth0",
            ALGO="Ring,Tree",
            PROTO="Simple",
            CROSS_NIC="0",
            NET_GDR_LEVEL="PIX",
            P2P_PXN_LEVEL="0",
            GPUDIRECTTCPX_SOCKET_IFNAME=_interfaces(TCPX),
            GPUDIRECTTCPX_CTRL_DEV="eth0",
            DYNAMIC_CHUNK_SIZE="524288",
            P2P_NET_CHUNKSIZE="524288",
            P2P_PCI_CHUNKSIZE="524288",
            P2P_NVL_CHUNKSIZE="1048576",
            BUFFSIZE="4194304",
            NSOCKS_PERTHREAD="4",
            SOCKET_NTHREADS="1",
            GPUDIRECTTCPX_TX_BINDINGS=(
                "eth1:8-21,112-125;eth2:8-21,112-125;eth3:60-73,164-177;eth4:60-73,164-177"
            ),
            GPUDIRECTTCPX_RX_BINDINGS=(
                "eth1:22-35,126-139;eth2:22-35,126-139;eth3:74-87,178-191;eth4:74-87,178-191"
            ),
            GPUDIRECTTCPX_PROGRAM_FLOW_STEERING_WAIT_MICROS="500000",
        ),
    ),
}
"""Those of Google, whole: the plugin checks them. They are for its release with the sidecar."""


def tcpxo(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield GPUDirect-TCPXO: A3 Mega."""
    if facts.labels.get(ACCELERATOR) == TCPXO_ACCELERATOR:
        yield _candidate(facts, TCPXO_ROW, "tcpxo")


def tcpx(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield GPUDirect-TCPX: A3 High."""
    high = facts.labels.get(INSTANCE_TYPE) == TCPX_INSTANCE
    if high and facts.labels.get(ACCELERATOR) == TCPX_ACCELERATOR:
        yield _candidate(facts, TCPX_ROW, "tcpx")


def _candidate(facts: NodeFacts, row: str, profile: NetworkProfile) -> CandidateNetwork:
    """Return the network of a node. No variable of NCCL that demands it is documented."""
    parts = PARTS[row]
    text = f"a sidecar with NET_ADMIN, {profile}-daemon, and host paths with the NCCL of the node"
    return CandidateNetwork(
        row=row,
        fact=facts.label_fact(ACCELERATOR),
        profiles=(profile,),
        variables=_VARIABLES[row],
        demand=(),
        need=Need(NeedKind.PRIVILEGE, text, parts.source),
        parts=parts,
        topology="gke",
    )
