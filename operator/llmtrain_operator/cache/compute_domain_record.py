"""Records of the ComputeDomains of jobs."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from llmtrain_core.api import labels
from llmtrain_operator.cache.job import Raw
from llmtrain_operator.cache.records import owner_of, read_number


@dataclass(frozen=True, slots=True)
class ComputeDomainRecord:
    """A ComputeDomain with the label of a job. Its owner decides whose it is."""

    uid: str
    namespace: str
    name: str
    owner: str
    """UID of the controller that owns it, which must be in the same namespace."""
    attempt: int
    """Attempt of the job that it is for; -1 if its label is invalid."""
    deleting: bool


def compute_domain_record(raw: Raw) -> ComputeDomainRecord:
    """Read a ComputeDomain."""
    metadata = raw["metadata"]
    return ComputeDomainRecord(
        uid=metadata["uid"],
        namespace=sys.intern(metadata["namespace"]),
        name=metadata["name"],
        owner=sys.intern(owner_of(metadata)),
        attempt=read_number((metadata.get("labels") or {}).get(labels.ATTEMPT)),
        deleting="deletionTimestamp" in metadata,
    )
