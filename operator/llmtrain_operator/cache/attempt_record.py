"""Records of the objects that belong to one attempt of a job: ComputeDomains and PodGroups."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmtrain_core.api import labels
from llmtrain_operator.cache.job import Raw
from llmtrain_operator.cache.records import owner_of, read_number
from llmtrain_operator.kube.resources import COMPUTE_DOMAINS, POD_GROUPS, Resource

ATTEMPT_KINDS: Mapping[Resource, str] = {
    COMPUTE_DOMAINS: "ComputeDomain",
    POD_GROUPS: "PodGroup",
}
"""Kinds of objects that belong to an attempt and are deleted after it."""


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """An object with the labels of a job and an attempt. Its owner decides whose it is."""

    resource: Resource
    uid: str
    namespace: str
    name: str
    owner: str
    """UID of the controller that owns it, which must be in the same namespace."""
    attempt: int
    """Attempt of the job that it is for; -1 if its label is invalid."""
    deleting: bool

    @property
    def text(self) -> str:
        """Kind and name."""
        return f"{ATTEMPT_KINDS[self.resource]} {self.name}"


def attempt_record(resource: Resource) -> Callable[[Raw], AttemptRecord]:
    """Return the function that reads such objects of a kind."""

    def read(raw: Raw) -> AttemptRecord:
        metadata = raw["metadata"]
        return AttemptRecord(
            resource=resource,
            uid=metadata["uid"],
            namespace=sys.intern(metadata["namespace"]),
            name=metadata["name"],
            owner=sys.intern(owner_of(metadata)),
            attempt=read_number((metadata.get("labels") or {}).get(labels.ATTEMPT)),
            deleting="deletionTimestamp" in metadata,
        )

    return read
