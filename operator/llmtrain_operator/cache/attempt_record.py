"""Records of the objects that belong to one attempt of a job: ComputeDomains and PodGroups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmtrain_operator.cache.job import Raw
from llmtrain_operator.cache.owned_record import OwnedRecord, owned_fields
from llmtrain_operator.kube.resources import COMPUTE_DOMAINS, POD_GROUPS, Resource

ATTEMPT_KINDS: Mapping[Resource, str] = {
    COMPUTE_DOMAINS: "ComputeDomain",
    POD_GROUPS: "PodGroup",
}
"""Kinds of objects that belong to an attempt and are deleted after it."""


@dataclass(frozen=True, slots=True)
class AttemptRecord(OwnedRecord):
    """An object with the labels of a job and an attempt."""

    @property
    def text(self) -> str:
        """Kind and name."""
        return f"{ATTEMPT_KINDS[self.resource]} {self.name}"


def attempt_record(resource: Resource) -> Callable[[Raw], AttemptRecord]:
    """Return the function that reads such objects of a kind."""

    def read(raw: Raw) -> AttemptRecord:
        return AttemptRecord(**owned_fields(resource, raw))

    return read
