"""What the pods of a gang get for their network.

It is read from the status of the job, so that it is the same for all pods of a placement, whatever
the table of a later release says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtrain_core.api.base import read_quantity
from llmtrain_core.network import Kind
from llmtrain_core.network.facts import is_of_network
from llmtrain_core.network.profile import OWN_FIELDS, PROFILE_VARIABLES
from llmtrain_core.network.request import AUTO
from llmtrain_core.network.rows import NETWORKS
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

    @property
    def needs(self) -> dict[str, int]:
        """Amounts that a pod requests for it."""
        return amounts(self.resources)

    @property
    def has_devices(self) -> bool:
        """Whether pods get devices of the network."""
        return any(map(is_device, self.resources))

    @classmethod
    def of_status(cls, stored: Mapping[str, Any] | None) -> PodNetwork:
        """Return what `status.network` adds to pods; nothing if it is absent."""
        by_kind: dict[str, dict[str, str]] = {kind.value: {} for kind in Kind}
        for item in (stored or {}).get("settings") or ():
            if item["setBy"] not in OWN_FIELDS:
                by_kind[item["kind"]][item["name"]] = item["value"]
        return cls(
            {name: text for name, text in by_kind[Kind.RESOURCE].items() if _is_added(name, text)},
            by_kind[Kind.VARIABLE],
            {name: value for name, value in by_kind[Kind.ANNOTATION].items() if name == NETWORKS},
            (stored or {}).get("row") or "",
        )

    @classmethod
    def of(cls, job: Job, stored: Mapping[str, Any] | None) -> PodNetwork:
        """Return what the pods of a job get.

        A placement of an older release has no network in the status: its pods get the variables of
        the profile only, as they did.
        """
        if stored is not None:
            return cls.of_status(stored)
        own = job.spec.network
        if own is None or own.profile == AUTO:
            return cls()
        values = PROFILE_VARIABLES.get(own.profile, ())
        return cls(variables={item.name: item.value for item in values})


def _is_added(resource: str, amount: str) -> bool:
    """Return True for what the table adds; other resources are the job's alone."""
    return is_of_network(resource) and read_quantity(amount) is not None
