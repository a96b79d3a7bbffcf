"""What the pods of a gang get for their network.

It is read from the status of the job, so that it is the same for all pods of a placement, whatever
the table of a later release says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtrain_core.api.base import read_quantity
from llmtrain_core.api.pod_patch import PodPatchSpec
from llmtrain_core.network import Kind
from llmtrain_core.network.environments.gke_gpudirect import PARTS, PARTS_OF_PROFILE
from llmtrain_core.network.facts import is_of_network
from llmtrain_core.network.profile import PROFILE_VARIABLES
from llmtrain_core.network.request import AUTO
from llmtrain_core.network.rows import INTERFACES, NETWORKS, PodParts
from llmtrain_core.network.settings import OWN_FIELDS
from llmtrain_core.topology.resources import amounts, is_device
from llmtrain_core.validation.check import Job


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """Values that are not in the spec of the job. Those of the job take precedence."""

    resources: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    row: str = ""
    """Row of the table of networks; empty if it is not known."""
    parts: PodParts | None = None
    """Sidecar, paths of the node, and security settings."""

    @property
    def needs(self) -> dict[str, int]:
        """Amounts that a pod requests for it."""
        return amounts(self.resources)

    @property
    def patch(self) -> PodPatchSpec | None:
        """Parts of a pod that it adds."""
        return self.parts.patch if self.parts else None

    @property
    def has_devices(self) -> bool:
        """Whether pods get devices of the network."""
        return any(map(is_device, self.resources))

    @classmethod
    def of_status(
        cls, stored: Mapping[str, Any] | None, parts: PodParts | None = None
    ) -> PodNetwork:
        """Return what `status.network` adds to pods; nothing if it is absent.

        `parts` are those of the profile that the job names, by this release: whoever writes the
        status chooses no image, no path of the node and no device. Kinds of settings of a later
        release are left out.
        """
        row = (stored or {}).get("row") or ""
        parts = parts if PARTS.get(row) is parts else None
        by_kind: dict[str, dict[str, str]] = {kind.value: {} for kind in Kind}
        for item in (stored or {}).get("settings") or ():
            if item["setBy"] not in OWN_FIELDS and item["kind"] in by_kind:
                by_kind[item["kind"]][item["name"]] = item["value"]
        return cls(
            {name: text for name, text in by_kind[Kind.RESOURCE].items() if _is_added(name, text)},
            by_kind[Kind.VARIABLE],
            _annotations(parts, by_kind[Kind.ANNOTATION]),
            row,
            parts,
        )

    @classmethod
    def of(cls, job: Job, stored: Mapping[str, Any] | None) -> PodNetwork:
        """Return what the pods of a job get.

        A placement of an older release has no network in the status: its pods get the variables of
        the profile only, as they did. So does a job without a placement, with the parts of pods.
        """
        own = job.spec.network
        if own is None or own.profile == AUTO:
            return cls.of_status(stored)
        parts = PARTS_OF_PROFILE.get(own.profile)
        if stored is not None:
            return cls.of_status(stored, parts)
        values = PROFILE_VARIABLES.get(own.profile, ())
        return cls(
            variables={item.name: item.value for item in values},
            annotations=_annotations(parts, {}),
            parts=parts,
        )


def _annotations(parts: PodParts | None, stored: Mapping[str, str]) -> dict[str, str]:
    """Return the annotations of pods: of the stored ones only those that attach networks."""
    attached = NETWORKS if parts is None else INTERFACES
    fixed = {item.name: item.value for item in parts.annotations} if parts else {}
    return {**fixed, **{name: text for name, text in stored.items() if name == attached}}


def _is_added(resource: str, amount: str) -> bool:
    """Return True for what the table adds; other resources are the job's alone."""
    return is_of_network(resource) and read_quantity(amount) is not None
