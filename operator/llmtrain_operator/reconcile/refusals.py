"""Why the API server refuses an object of a job, in words for its owner: field and remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.validation.check import Job
from llmtrain_core.validation.pod_privileges import privileges, privileges_text
from llmtrain_operator.errors import ApiError, ForbiddenError, InvalidError
from llmtrain_operator.job_state.observation import CreateError
from llmtrain_operator.kube.resources import (
    CLAIM_TEMPLATES,
    COMPUTE_DOMAINS,
    POD_GROUPS,
    Resource,
)
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.manifests.pod_network import PodNetwork

_NOT_SERVED: Mapping[Resource, CreateError] = {
    POD_GROUPS: CreateError(
        Reason.FORBIDDEN,
        "--pod-groups: the API server does not serve PodGroups of scheduling.k8s.io/v1beta1; enable"
        " its feature gate GenericWorkload and this API, or run the operator without the flag",
    ),
    CLAIM_TEMPLATES: CreateError(
        Reason.NOT_SERVED,
        "spec.workers.deviceClaims: the API server does not serve resource.k8s.io/v1, which"
        " Kubernetes has from 1.34; create the job again with workers.gpuResource",
    ),
    COMPUTE_DOMAINS: CreateError(
        Reason.NOT_SERVED,
        "spec.topology.computeDomain: the API server does not serve ComputeDomains of"
        " resource.nvidia.com/v1beta1; install the DRA driver of NVIDIA, or create the job again"
        " without the field",
    ),
}


_SHARED_CLAIMS = (
    "enable the feature gates GenericWorkload and DRAWorkloadResourceClaims (Kubernetes 1.37) of"
    " kube-apiserver, kube-controller-manager, kube-scheduler and the kubelets, or create the job"
    " again with scope pod"
)


def not_served(resource: Resource, body: Mapping[str, Any]) -> CreateError | None:
    """Return why an object cannot be created of a kind that a cluster may not have, or None."""
    if resource == POD_GROUPS and "resourceClaims" in body["spec"]:
        text = (
            "spec.workers.deviceClaims: scope gang: the API server does not serve PodGroups of"
            f" scheduling.k8s.io/v1beta1; serve this API, {_SHARED_CLAIMS}"
        )
        return CreateError(Reason.NOT_SERVED, text)
    return _NOT_SERVED.get(resource)


def dropped_claims(
    resource: Resource, body: Mapping[str, Any], made: Mapping[str, Any]
) -> CreateError | None:
    """Return why a PodGroup has no claims although it was created with some, or None.

    Without the feature gate the API server drops the field and says nothing. Each pod would then
    get claims of its own.
    """
    if resource != POD_GROUPS or "resourceClaims" not in body["spec"]:
        return None
    if made["spec"].get("resourceClaims"):
        return None
    text = (
        "spec.workers.deviceClaims: scope gang: the API server drops the claims of PodGroups;"
        f" {_SHARED_CLAIMS}"
    )
    return CreateError(Reason.NOT_SERVED, text)


_NOT_FOUND = re.compile(r'(serviceaccount|RuntimeClass) "[^"]{1,253}" not found')
"""Messages of the admission plugins ServiceAccount and RuntimeClass."""
_PRIVILEGED = re.compile(
    r"violates PodSecurity|security context constraint"
    r"|the operator creates no (privileged|pods with host paths|pods in the network)"
)
"""Messages of Pod Security, of the admission policy of the chart, and of OpenShift."""


def name_conflict(child: str, owner: Mapping[str, Any], identity: JobIdentity) -> CreateError:
    """Return why a child object cannot be created: another one has its name."""
    mine = identity.owner()
    deleted = all(owner.get(key) == mine[key] for key in ("apiVersion", "kind", "name"))
    text = (
        f"metadata.name: {child} belongs to a deleted job of the same name;"
        " waiting until it is gone"
        if deleted
        else f"metadata.name: {child} exists and is not owned by this job;"
        " delete it, or create the job with another name"
    )
    return CreateError(Reason.NAME_CONFLICT, clean_text(text))


def forbidden(resource: Resource, name: str, error: ApiError) -> CreateError:
    """Return why the API server refuses a child object: quota, policy, or what does not exist."""
    if isinstance(error, ForbiddenError) and error.quota:
        text = (
            f"spec.workers: {resource.plural} {name}: {error.message}; raise the quota of the"
            " namespace or request less"
        )
        return CreateError(Reason.QUOTA_EXCEEDED, clean_text(text, 700))
    text = f"the API server rejects {resource.plural} {name}: {error.message}"
    if missing := _NOT_FOUND.search(error.message):
        field = "serviceAccountName" if missing[1] == "serviceaccount" else "runtimeClassName"
        text = f"spec.workers.{field}: {missing[0]}; create it, or correct the job; {text}"
        return CreateError(Reason.OBJECT_NOT_FOUND, clean_text(text, 700))
    return CreateError(Reason.FORBIDDEN, clean_text(text, 700))


def invalid(resource: Resource, name: str, error: InvalidError) -> CreateError:
    """Return why a child object is invalid."""
    text = f"{resource.plural} {name} is invalid: {error.message}"
    if limited := error.limited_resource:
        # The limits of a job are not below its requests, so this one is of the namespace.
        least = " (at least shmSize)" if limited == "memory" else ""
        text = (
            f"spec.workers.resources: a LimitRange or a webhook sets a {limited} limit below the"
            f" request{least}; set limits.{limited} above it, or change the LimitRange: {text}"
        )
    return CreateError(Reason.INVALID_SPEC, clean_text(text, 700))


def naming_privileges(
    error: CreateError, job: Job, network: Mapping[str, Any] | None = None
) -> CreateError:
    """Return the refusal of a pod with the privileges that it has, if these caused it.

    They are those of its job and of its network, `status.network`.
    """
    found = privileges(job.spec.workers, PodNetwork.of(job, network).patch)
    if error.reason != Reason.FORBIDDEN or not found or not _PRIVILEGED.search(error.message):
        return error
    text = clean_text(f"{privileges_text(found)}: {error.message}", 700)
    return replace(error, message=text)
