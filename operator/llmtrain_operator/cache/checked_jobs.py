"""Validated jobs and their placement requests, computed once per generation of the spec."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from llmtrain_core.api.conditions import Reason
from llmtrain_core.devices.demand import DeviceKey
from llmtrain_core.placement import DOMAIN_TOLERANCE, Request
from llmtrain_core.plan.hardware import Accelerator
from llmtrain_core.validation.check import Job, Problem, check
from llmtrain_core.validation.pod_privileges import privilege_problems
from llmtrain_operator.cache.device_demand import DeviceDemand
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.manifests.pod import sample_pod
from llmtrain_operator.manifests.pod_network import PodNetwork
from llmtrain_operator.manifests.pod_patch import PodPatchError

log = logging.getLogger(__name__)


class CheckedJobs:
    """The result of the validation of each job."""

    def __init__(
        self,
        domain_tolerance: float = DOMAIN_TOLERANCE,
        gpu: Callable[[], Accelerator | None] = lambda: None,
        *,
        allow_privileged_pods: bool = False,
        device_claims: bool = False,
        compute_domains: bool = False,
        pod_groups: bool = False,
    ) -> None:
        """`domain_tolerance` is that of the placement requests; `gpu` returns that of the nodes.

        With `allow_privileged_pods`, jobs may ask for what restricted pods cannot have. Without
        `device_claims` and `compute_domains`, jobs may not ask for those, and without `pod_groups`
        not for claims that the pods of a gang share.
        """
        self._allow_privileged_pods = allow_privileged_pods
        self._device_claims = device_claims
        self._compute_domains = compute_domains
        self._pod_groups = pod_groups
        self._demand = DeviceDemand()
        self._domain_tolerance = domain_tolerance
        self._gpu = gpu
        self._checked: dict[str, tuple[int, Job | list[Problem]]] = {}
        self._requests: dict[str, tuple[Job, Accelerator | None, Request]] = {}

    def get(self, record: JobRecord) -> Job | list[Problem]:
        """Return the validated job, or the problems of its spec."""
        if record.problem is not None:
            return [record.problem]
        generation = record.view.generation
        known = self._checked.get(record.uid)
        if known is None or known[0] != generation:
            known = (generation, self._check(record))
            self._checked[record.uid] = known
        self._demand.update(record, known[1])
        return known[1]

    def request(self, uid: str, job: Job) -> Request:
        """Return the placement request of a job. The plan computes the traffic of its groups."""
        known, gpu = self._requests.get(uid), self._gpu()
        if known is None or known[0] is not job or known[1] != gpu:
            request = Request.of(job, gpu, self._domain_tolerance)
            known = self._requests[uid] = (job, gpu, request)
        return known[2]

    def forget(self, uid: str) -> None:
        """Drop the results of a job that does not exist any more."""
        self._checked.pop(uid, None)
        self._requests.pop(uid, None)
        self._demand.forget(uid)

    def demanded_devices(self) -> frozenset[DeviceKey]:
        """Return the kinds of devices that jobs claim; the same object unless they change."""
        return self._demand.keys

    def _check(self, record: JobRecord) -> Job | list[Problem]:
        """Check a job. Whatever its spec makes the check raise concerns this job only."""
        try:
            found = check(record.name, record.view.spec)
            if isinstance(found, Job):
                return [*self._device_problems(found), *self._pod_problems(found, record)] or found
        except Exception as error:
            log.exception("job=%s cannot be checked", record.uid)
            text = f"it cannot be checked: {type(error).__name__}"
            return [Problem(Reason.UNREADABLE, "spec", text, "report it, and change the spec")]
        return found

    def _device_problems(self, job: Job) -> Iterator[Problem]:
        """Yield what this operator does not do for a job with claims or a ComputeDomain."""
        topology, claims = job.spec.topology, job.spec.workers.device_claims or []
        shared = next((i for i, claim in enumerate(claims) if claim.scope == "gang"), None)
        asked = (
            ("workers.deviceClaims", "device-claims", claims),
            ("topology.computeDomain", "compute-domains", topology and topology.compute_domain),
            (f"workers.deviceClaims[{shared}].scope", "pod-groups", shared is not None),
        )
        enabled = {
            "device-claims": self._device_claims,
            "compute-domains": self._compute_domains,
            "pod-groups": self._pod_groups,
        }
        for field, flag, value in asked:
            if value and not enabled[flag]:
                text = f"the operator runs without --{flag}"
                remedy = f"set config.{_camel(flag)} of the chart, or remove the field"
                yield Problem(Reason.FORBIDDEN, f"spec.{field}", text, remedy)

    def _pod_problems(self, job: Job, record: JobRecord) -> list[Problem]:
        """Return why this operator does not create the pods of a valid job."""
        network = PodNetwork.of(job, None).patch
        if job.spec.workers.pod_patch is None and network is None:
            return []
        found = privilege_problems(job.spec.workers, network)
        if found and not self._allow_privileged_pods:
            return found
        try:
            sample_pod(job, record.raw)
        except PodPatchError as error:
            text, remedy = "it belongs to the pod contract", "remove it from the patch"
            return [Problem(Reason.FORBIDDEN, error.field, text, remedy)]
        return []


def _camel(flag: str) -> str:
    first, *others = flag.split("-")
    return first + "".join(map(str.capitalize, others))
