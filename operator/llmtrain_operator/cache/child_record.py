"""Records of the objects of a job besides its pods: what it takes to restore them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from llmtrain_core.api import env, labels
from llmtrain_operator.cache.job import Raw
from llmtrain_operator.cache.records import owner_of, read_number
from llmtrain_operator.kube.resources import Resource
from llmtrain_operator.manifests.job_resources import digest

_GANG_KEY_LENGTH = 64


@dataclass(frozen=True, slots=True)
class ChildRecord:
    """An object with the label of a job. Its owner decides whose it is."""

    resource: Resource
    uid: str
    namespace: str
    name: str
    owner: str
    """UID of the controller that owns it, which must be in the same namespace."""
    attempt: int
    """Attempt of the job that it is for; -1 if it is for all."""
    deleting: bool
    digest: str
    """Digest of the fields that are restored."""
    gang_key: str = field(default="", repr=False)
    """Key of the gang in a ConfigMap."""


def child_record(resource: Resource) -> Callable[[Raw], ChildRecord]:
    """Return the function that reads an object of this kind."""

    def read(raw: Raw) -> ChildRecord:
        metadata = raw["metadata"]
        tags = metadata.get("labels") or {}
        key = (raw.get("data") or {}).get(env.GANG_KEY_NAME, "")
        return ChildRecord(
            resource=resource,
            uid=metadata["uid"],
            namespace=sys.intern(metadata["namespace"]),
            name=metadata["name"],
            owner=sys.intern(owner_of(metadata)),
            attempt=read_number(tags.get(labels.ATTEMPT)),
            deleting="deletionTimestamp" in metadata,
            digest=digest(resource, raw),
            gang_key=str(key)[:_GANG_KEY_LENGTH],
        )

    return read
