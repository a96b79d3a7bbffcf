"""Validated jobs and their placement requests, computed once per generation of the spec."""

from __future__ import annotations

import logging
from collections.abc import Callable

from llmtrain_core.api.conditions import Reason
from llmtrain_core.placement import DOMAIN_TOLERANCE, Request
from llmtrain_core.plan.hardware import Accelerator
from llmtrain_core.validation.check import Job, Problem, check
from llmtrain_operator.cache.records import JobRecord

log = logging.getLogger(__name__)


class CheckedJobs:
    """The result of the validation of each job."""

    def __init__(
        self,
        domain_tolerance: float = DOMAIN_TOLERANCE,
        gpu: Callable[[], Accelerator | None] = lambda: None,
    ) -> None:
        """`domain_tolerance` is that of the placement requests; `gpu` returns that of the nodes."""
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
            known = (generation, _check(record))
            self._checked[record.uid] = known
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


def _check(record: JobRecord) -> Job | list[Problem]:
    """Check a job. Whatever its spec makes the check raise concerns this job only."""
    try:
        return check(record.name, record.view.spec)
    except Exception as error:
        log.exception("job=%s cannot be checked", record.uid)
        text = f"it cannot be checked: {type(error).__name__}"
        return [Problem(Reason.UNREADABLE, "spec", text, "report it, and change the spec")]
