"""What a job needs for its device claims: ResourceClaimTemplates, and a ComputeDomain.

A template has the fields of `workers.deviceClaims` and nothing else: no `adminAccess`, which gives
a pod devices that others use, and no `config`, which drivers execute as root on the node.
"""

from __future__ import annotations

from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.api.device_claims import DeviceClaim, DeviceRequest
from llmtrain_core.validation.check import Job
from llmtrain_operator.kube.resources import CLAIM_TEMPLATES, COMPUTE_DOMAINS, Resource
from llmtrain_operator.manifests.names import JobIdentity

Object = dict[str, Any]

CHANNEL_CLAIM = "llmtrain-channel"
"""Name of the claim by which a pod joins the ComputeDomain of its attempt."""


def claim_resources(job: Job, identity: JobIdentity, attempt: int) -> list[tuple[Resource, Object]]:
    """Return the objects to create before the first pod of an attempt."""
    found = [
        (CLAIM_TEMPLATES, make_claim_template(claim, identity))
        for claim in job.spec.workers.device_claims or ()
    ]
    if has_compute_domain(job):
        found.append((COMPUTE_DOMAINS, make_compute_domain(identity, attempt)))
    return found


def has_compute_domain(job: Job) -> bool:
    """Return True if the attempts of a job have ComputeDomains."""
    topology = job.spec.topology
    return topology is not None and topology.compute_domain is not None


def make_claim_template(claim: DeviceClaim, identity: JobIdentity) -> Object:
    """Return the template of a claim. All attempts use it: the claims of a job are immutable."""
    devices: Object = {"requests": [_request(request) for request in claim.requests]}
    if claim.constraints:
        devices["constraints"] = [constraint.to_wire() for constraint in claim.constraints]
    return {
        "apiVersion": CLAIM_TEMPLATES.api_version,
        "kind": "ResourceClaimTemplate",
        "metadata": identity.metadata(identity.claim_template(claim.name)),
        "spec": {"spec": {"devices": devices}},
    }


def _request(request: DeviceRequest) -> Object:
    exactly: Object = {
        "deviceClassName": request.device_class_name,
        "allocationMode": "ExactCount",
        "count": request.count,
    }
    if request.selectors:
        exactly["selectors"] = [selector.to_wire() for selector in request.selectors]
    return {"name": request.name, "exactly": exactly}


def shared_claims(job: Job, identity: JobIdentity) -> list[Object]:
    """Return `resourceClaims` of the PodGroup: the claims that all pods share.

    Kubernetes matches them with those of the pods, so they are equal in all fields.
    """
    return [
        {"name": claim.name, "resourceClaimTemplateName": identity.claim_template(claim.name)}
        for claim in job.spec.workers.device_claims or ()
        if claim.scope == "gang"
    ]


def make_compute_domain(identity: JobIdentity, attempt: int) -> Object:
    """Return the ComputeDomain of an attempt, whose driver creates the template that it names.

    Each attempt has its own: the spec is immutable, and one that is deleted goes slowly. With
    `numNodes: 0` a pod waits for the daemon of its own node only.
    """
    of_attempt = {labels.ATTEMPT: str(attempt)}
    template = {"name": identity.channel_template(attempt)}
    return {
        "apiVersion": COMPUTE_DOMAINS.api_version,
        "kind": "ComputeDomain",
        "metadata": identity.metadata(identity.compute_domain(attempt), **of_attempt),
        "spec": {
            "numNodes": 0,
            "channel": {"resourceClaimTemplate": template, "allocationMode": "Single"},
        },
    }


def pod_claims(job: Job, identity: JobIdentity, attempt: int) -> list[Object]:
    """Return `resourceClaims` of a pod: all of its claims."""
    found = [
        {"name": name, "resourceClaimTemplateName": identity.claim_template(claim.name)}
        for claim in job.spec.workers.device_claims or ()
        for name in claim.names
    ]
    if has_compute_domain(job):
        template = identity.channel_template(attempt)
        found.append({"name": CHANNEL_CLAIM, "resourceClaimTemplateName": template})
    return found
