"""Names, labels and owner of what a job consists of: a function of the job and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.api.base import API_VERSION


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """Which job: the part of its metadata that its children carry."""

    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> JobIdentity:
        """Read it from the job."""
        metadata = raw["metadata"]
        return cls(metadata["namespace"], metadata["name"], metadata["uid"])

    @property
    def config_map(self) -> str:
        """Name of the ConfigMap with the job file."""
        return f"{self.name}-job"

    def pod(self, attempt: int, index: int) -> str:
        """Name, and host name, of a pod."""
        return f"{self.name}-{attempt}-{index}"

    def owner(self) -> dict[str, Any]:
        """Owner reference: the garbage collector removes what the job leaves behind."""
        return {
            "apiVersion": API_VERSION,
            "kind": "LLMTrainingJob",
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def selector(self) -> dict[str, str]:
        """Labels that find the job's pods, and those of no other job."""
        return {labels.JOB_UID: self.uid}

    def metadata(self, name: str, **extra: str) -> dict[str, Any]:
        """Metadata of a child."""
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": {
                labels.MANAGED_BY: labels.MANAGED_BY_VALUE,
                labels.JOB_NAME: self.name,
                labels.JOB_UID: self.uid,
                **extra,
            },
            "ownerReferences": [self.owner()],
        }
