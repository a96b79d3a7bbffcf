"""Whether the devices that a job claims are known, before it takes part in the queue."""

from __future__ import annotations

from dataclasses import replace

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.devices.demand import CHANNEL_CLASS, demand_of
from llmtrain_core.queueing import PendingJob, Unschedulable
from llmtrain_core.validation.check import Job
from llmtrain_operator.cache.device_demand import KINDS_OF_NAMESPACE
from llmtrain_operator.cache.node_devices import NodeDevices

CLAIMS_FIELD, DOMAIN_FIELD = "spec.workers.deviceClaims", "spec.topology.computeDomain"


def with_known_devices(
    job: PendingJob, checked: Job, devices: NodeDevices
) -> PendingJob | Unschedulable:
    """Return a job with all that its claims take, or why its devices cannot be counted."""
    demand = demand_of(checked.spec).keys() | job.shared.keys
    if not demand:
        extended = devices.classes.served
        return replace(job, request=job.request.with_extended(extended)) if extended else job
    if devices.missing:
        text = (
            f"{CLAIMS_FIELD}: the operator cannot read the devices of nodes (resource.k8s.io/v1):"
            f" {devices.missing}"
        )
        return Unschedulable(Reason.NOT_SERVED, clean_text(text, 700))
    for problem in devices.classes.problems(demand):
        if problem.missing and CHANNEL_CLASS in problem.text:
            text = f"{DOMAIN_FIELD}: {problem.text}; install the DRA driver of NVIDIA"
            return Unschedulable(Reason.NOT_SERVED, clean_text(text, 700))
        if problem.missing:
            text = f"{CLAIMS_FIELD}: {problem.text}; create it, or name one that exists"
            return Unschedulable(Reason.DEVICE_CLASS_NOT_FOUND, clean_text(text, 700))
        text = f"{CLAIMS_FIELD}: {problem.text}; claim devices of another class"
        return Unschedulable(Reason.DEVICE_CLASS_NOT_SUPPORTED, clean_text(text, 700))
    if not all(map(devices.counts, demand)):
        text = (
            f"{CLAIMS_FIELD}: other jobs of the namespace use {KINDS_OF_NAMESPACE} different"
            " selectors and constraints already, or those of all namespaces too many; use the same"
            " ones, or wait until such jobs are gone"
        )
        return Unschedulable(Reason.TOO_MANY_ACTIVE_JOBS, text)
    for kind in sorted(job.shared.kinds):
        if node := devices.single_node(kind):
            text = (
                f"{CLAIMS_FIELD}: scope gang: node {node} has devices of class {kind.class_name}"
                " that other nodes do not reach, and kube-scheduler might take one; claim devices"
                " that all nodes reach, or use scope pod"
            )
            return Unschedulable(Reason.DEVICE_CLASS_NOT_SUPPORTED, clean_text(text, 700))
    return replace(job, request=job.request.with_extended(devices.classes.served))
