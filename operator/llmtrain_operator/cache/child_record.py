"""Records of the objects of a job besides its pods: what it takes to restore them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from llmtrain_core.api import env
from llmtrain_operator.cache.job import Raw
from llmtrain_operator.cache.owned_record import OwnedRecord, owned_fields
from llmtrain_operator.kube.resources import Resource
from llmtrain_operator.manifests.job_resources import digest

_GANG_KEY_LENGTH = 64


@dataclass(frozen=True, slots=True)
class ChildRecord(OwnedRecord):
    """An object that is restored if it is deleted or edited."""

    digest: str
    """Digest of the fields that are restored."""
    gang_key: str = field(default="", repr=False)
    """Key of the gang in a ConfigMap."""


def child_record(resource: Resource) -> Callable[[Raw], ChildRecord]:
    """Return the function that reads an object of this kind."""

    def read(raw: Raw) -> ChildRecord:
        key = (raw.get("data") or {}).get(env.GANG_KEY_NAME, "")
        return ChildRecord(
            **owned_fields(resource, raw),
            digest=digest(resource, raw),
            gang_key=str(key)[:_GANG_KEY_LENGTH],
        )

    return read
