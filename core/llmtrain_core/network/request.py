"""What a job says about its network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Final

from llmtrain_core.api.defaults import GPU_RESOURCE
from llmtrain_core.api.job import Resources
from llmtrain_core.api.pod_patch import PodPatchSpec
from llmtrain_core.devices.demand import counted_gpus
from llmtrain_core.network.facts import is_of_network
from llmtrain_core.network.rows import GKE_NETWORKING, NETWORKS
from llmtrain_core.validation.check import Job

AUTO: Final = "auto"
FROM_SOURCE = "(valueFrom)"
"""Shown for a variable whose value is in another object."""
VARIABLE_PREFIXES = ("NCCL_", "RCCL_", "FI_", "UCX_", "IONIC_")
"""Starts of the names of variables that choose or tune a network."""
LIBRARY_PATH: Final = "LD_LIBRARY_PATH"
"""By it some networks load the NCCL of the node."""
_NO_PATCH: Final = PodPatchSpec()


@dataclass(frozen=True, slots=True)
class NetworkRequest:
    """What a job says about its network, and the share of a node that it takes."""

    nodes: int
    gpus_per_node: int
    gpu_resource: str = GPU_RESOURCE
    profile: str = AUTO
    rdma: tuple[str, int] | None = None
    """Resource and count of the devices that the job names."""
    resources: Mapping[str, str] = field(default_factory=dict)
    """Amounts of devices and huge pages of `workers.resources`: the limits, else the requests."""
    nccl: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of `workers.env` for networks, without those that `nccl` overrides."""
    networks: str | None = None
    """Networks of Multus that the job names in `workers.podAnnotations`."""
    gke_annotations: Mapping[str, str] = field(default_factory=dict)
    """Annotations for the networks of GKE in `workers.podAnnotations`."""
    host_network: bool = False
    """Whether `workers.podPatch` gives its pods the network of the node."""
    node_paths: bool = False
    """Whether `workers.podPatch` mounts paths of the node in the container that trains."""
    sidecars: Mapping[str, str] = field(default_factory=dict)
    """Images of the sidecars of `workers.podPatch`, by name."""
    has_claims: bool = False
    """Whether pods claim devices of their nodes besides GPUs."""

    @property
    def key(self) -> Hashable:
        """Equal for requests that get the same network on every node."""
        return (
            self.nodes == 1,
            self.gpus_per_node,
            self.gpu_resource,
            self.profile,
            self.rdma,
            *(tuple(sorted(each.items())) for each in self._maps),
            self.networks,
            self.host_network,
            self.node_paths,
            self.has_claims,
        )

    @property
    def _maps(self) -> tuple[Mapping[str, str], ...]:
        return self.resources, self.nccl, self.env, self.gke_annotations, self.sidecars

    @classmethod
    def of(cls, job: Job) -> NetworkRequest:
        """Return what a checked job says."""
        network, workers = job.spec.network, job.spec.workers
        nccl = dict((network.nccl if network else None) or {})
        rdma = network.rdma if network else None
        patch = workers.pod_patch.spec if workers.pod_patch else _NO_PATCH
        annotations = workers.pod_annotations or {}
        return cls(
            nodes=job.nodes,
            gpus_per_node=job.gpus_per_node,
            gpu_resource=counted_gpus(workers),
            profile=network.profile if network else AUTO,
            rdma=(rdma.resource, rdma.count) if rdma else None,
            resources=_own_amounts(workers.resources),
            nccl=nccl,
            env={
                item.name: item.value if item.value_from is None else FROM_SOURCE
                for item in workers.env or ()
                if item.name not in nccl
                and (item.name.startswith(VARIABLE_PREFIXES) or item.name == LIBRARY_PATH)
            },
            networks=annotations.get(NETWORKS),
            gke_annotations={
                key: text for key, text in annotations.items() if key.startswith(GKE_NETWORKING)
            },
            host_network=bool(patch.host_network),
            node_paths=_mounts_node_paths(patch),
            sidecars={item.name: item.image for item in patch.init_containers or ()},
            has_claims=any(
                claim.scope == "pod" and not each.gpus
                for claim in workers.device_claims or ()
                for each in claim.requests
            ),
        )


def _own_amounts(resources: Resources | None) -> dict[str, str]:
    if resources is None:
        return {}
    both = {**(resources.requests or {}), **(resources.limits or {})}
    return {name: str(amount) for name, amount in both.items() if is_of_network(name)}


def _mounts_node_paths(patch: PodPatchSpec) -> bool:
    of_node = patch.host_path_volumes
    return any(
        mount.name in of_node
        for trainer in patch.containers or ()
        for mount in trainer.volume_mounts or ()
    )
