"""What the records of all objects of a job besides its pods have in common."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api import labels
from llmtrain_operator.cache.job import Raw
from llmtrain_operator.cache.records import owner_of, read_number
from llmtrain_operator.kube.resources import Resource


@dataclass(frozen=True, slots=True)
class OwnedRecord:
    """An object with the label of a job. Its owner decides whose it is."""

    resource: Resource
    uid: str
    namespace: str
    name: str
    owner: str
    """UID of the controller that owns it, which must be in the same namespace."""
    attempt: int
    """Attempt of the job that it is for; -1 if its label is invalid or it is for all."""
    deleting: bool


def owned_fields(resource: Resource, raw: Raw) -> dict[str, Any]:
    """Return the fields of an `OwnedRecord` of an object of this kind."""
    metadata = raw["metadata"]
    return {
        "resource": resource,
        "uid": metadata["uid"],
        "namespace": sys.intern(metadata["namespace"]),
        "name": metadata["name"],
        "owner": sys.intern(owner_of(metadata)),
        "attempt": read_number((metadata.get("labels") or {}).get(labels.ATTEMPT)),
        "deleting": "deletionTimestamp" in metadata,
    }
