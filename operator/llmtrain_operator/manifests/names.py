"""Names, labels and owner references of the objects of a job, derived from the job alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.api.base import API_VERSION

KIND = "LLMTrainingJob"


def job_of_pod(pod: str) -> str:
    """Return the name of the job whose pod has this name."""
    return pod.rsplit("-", 2)[0]


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """The metadata of a job that its child objects carry."""

    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> JobIdentity:
        """Return the identity of a job object."""
        metadata = raw["metadata"]
        return cls(metadata["namespace"], metadata["name"], metadata["uid"])

    def config_map(self, attempt: int) -> str:
        """Return the name of the ConfigMap with the job file of an attempt."""
        return f"{self.name}-job-{attempt}"

    @property
    def old_config_map(self) -> str:
        """Name of the ConfigMap of all attempts, which earlier versions created."""
        return f"{self.name}-job"

    def pod(self, attempt: int, index: int) -> str:
        """Return the name of a pod, which is also its host name."""
        return f"{self.name}-{attempt}-{index}"

    def claim_template(self, claim: str) -> str:
        """Return the name of the ResourceClaimTemplate of a claim.

        No name of a job has a dot, so the templates of two jobs have different names.
        """
        return f"{self.name}.{claim}"

    def compute_domain(self, attempt: int) -> str:
        """Return the name of the ComputeDomain of an attempt."""
        return f"{self.name}-{attempt}"

    def channel_template(self, attempt: int) -> str:
        """Return the name of the template that the driver creates for a ComputeDomain."""
        return f"{self.name}-{attempt}-channel"

    def pod_group(self, attempt: int) -> str:
        """Return the name of the PodGroup of an attempt whose pods share claims.

        No name of a job has a dot, so it is not that of the PodGroup of another job.
        """
        return f"{self.name}.{attempt}"

    def kueue_group(self, attempt: int) -> str:
        """Return the name of the Kueue pod group of an attempt, which is that of its Workload.

        A Workload may outlive its job for a moment. With the UID in the name, a new job that has
        the name of a deleted one does not get the old Workload.
        """
        return f"{self.name}-{self.uid[:6]}-{attempt}"

    def owner(self) -> dict[str, Any]:
        """Return the owner reference, by which the garbage collector deletes the children."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def selector(self) -> dict[str, str]:
        """Return labels that match the pods of this job only."""
        return {labels.JOB_UID: self.uid}

    def metadata(self, name: str, **extra: str) -> dict[str, Any]:
        """Return the metadata of a child object with extra labels."""
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
