"""The values that pods get for their network: what each is, who set it, and its source."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

JOB = "the job"
"""Source of the values that a job sets."""

RDMA_FIELD, RESOURCES_FIELD, NCCL_FIELD = (
    "spec.network.rdma",
    "spec.workers.resources",
    "spec.network.nccl",
)
ENV_FIELD, ANNOTATIONS_FIELD, PATCH_FIELD = (
    "spec.workers.env",
    "spec.workers.podAnnotations",
    "spec.workers.podPatch",
)
OWN_FIELDS = frozenset(
    {RDMA_FIELD, RESOURCES_FIELD, NCCL_FIELD, ENV_FIELD, ANNOTATIONS_FIELD, PATCH_FIELD}
)
"""Fields whose values are in the spec. The profile only names values of the table."""


class Kind(StrEnum):
    """What a setting sets."""

    RESOURCE = "Resource"
    VARIABLE = "Variable"
    ANNOTATION = "Annotation"
    TOLERATION = "Toleration"
    SIDECAR = "Sidecar"
    """A container beside the trainer, and its image."""
    HOST_PATH = "HostPath"
    """A path of the node, and where it is mounted."""
    SECURITY = "Security"
    """A container, and what it has above the Pod Security level restricted."""


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """One value of the pods: who set it, and where it is documented."""

    kind: Kind
    name: str
    value: str
    set_by: str
    """The row of the table, or the field of the job."""
    source: str

    def to_wire(self) -> dict[str, str]:
        """Return the setting as JSON."""
        return {
            "kind": self.kind.value,
            "name": self.name,
            "value": self.value,
            "setBy": self.set_by,
            "source": self.source,
        }
