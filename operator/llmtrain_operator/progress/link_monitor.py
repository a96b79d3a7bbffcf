"""The slow links of the cluster, from what running jobs report of their groups.

Reports come with the progress of a job. The jobs of a namespace on one Fabric are explained
together, apart from those of others. One explanation runs at a time, in a thread, and a pause in
proportion to its time follows. All of this is in memory only: a new process learns the slow links
from the next reports, in which each job compares its transfers with its own usual ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmtrain_core.api.defaults import FABRIC_NAME
from llmtrain_core.api.status.communication import CommunicationTuning
from llmtrain_core.network.group_reports import SlowdownReport, block_of_report, observations
from llmtrain_core.network.links import Group, GroupKey, JobRanks
from llmtrain_core.network.localise import Observation
from llmtrain_core.network.slow_links import (
    CLEAR_AFTER,
    EXPIRE_SECONDS,
    Claim,
    JobEvidence,
    SlowLinks,
    claim_of_job,
    decide_claims,
    slow_links,
)
from llmtrain_core.topology.levels import Levels
from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.placement_status import paths_of
from llmtrain_operator.cache.records import JobRecord

log = logging.getLogger(__name__)

PAUSE_RATIO = 19.0
"""Pause after an explanation, over the time that it took: all of them take 5 % of a core."""
MAX_PAUSE_SECONDS = 30.0
MAX_OBSERVATIONS = 1024
"""Groups of a namespace and Fabric that are explained together. Further jobs are left out."""

_Scope = tuple[str, str]
"""Fabric and namespace."""


@dataclass(frozen=True, slots=True)
class JobLinks:
    """What is known of the links that a job uses."""

    claim: Claim | None = None
    """About the named link that slows it down most, as the jobs of its namespace show."""
    known: bool = True
    """Whether there were enough reports, since this process leads, to say that none is slow."""


@dataclass(frozen=True, slots=True)
class _JobState:
    """The last report of the attempt of a job."""

    uid: str
    scope: _Scope
    attempt: int
    ranks: JobRanks
    block: int
    at: float
    """When the block was received, in seconds since the epoch."""
    report: Any = None
    """The report, until it is explained."""
    groups: Mapping[GroupKey, Group] | None = None
    observed: tuple[Observation, ...] = ()
    explained: int = 0
    """Number of reports that were explained."""

    def read(self) -> _JobState:
        """Return the state with its new report read, for which it takes a look at all ranks."""
        groups = self.groups or self.ranks.reported_groups()
        found = SlowdownReport.from_wire(self.report, groups.keys())
        observed = () if found is None else observations(self.uid, found, groups)
        count = self.explained + 1
        return replace(self, report=None, groups=groups, observed=observed, explained=count)


class LinkMonitor:
    """The claims of each namespace about slow links, and the last reports of its jobs."""

    def __init__(
        self,
        interval: float,
        wake: Callable[[str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        """`interval` is the least time in seconds between two explanations of one namespace."""
        self._interval = interval
        self._wake = wake
        self._sleep = sleep
        self._jobs: dict[str, _JobState] = {}
        self._first_seen: dict[str, float] = {}
        self._levels: dict[str, tuple[str, ...]] = {}
        """Names of the levels of the Fabric that links are named by."""
        self._claims: dict[_Scope, tuple[Claim, ...]] = {}
        self._due: dict[_Scope, None] = {}
        self._not_before: dict[_Scope, float] = {}
        """Monotonic time of the next explanation."""
        self._task: asyncio.Task[None] | None = None

    def observe(
        self, job: JobRecord, checked: Job | list[Problem], levels: Levels, report: Any
    ) -> JobLinks:
        """Take the progress that a job reports, if it is new. Return what is known of its links."""
        now, uid, view = time.time(), job.uid, job.view
        first_seen = self._first_seen.setdefault(uid, now)
        state = self._jobs.get(uid)
        if view.placement is None or view.is_finished:
            self._jobs.pop(uid, None)
            return JobLinks()
        block = _new_block(state, view, report)
        if block is not None:
            self._take(job, checked, levels, block, report)
        claims = self._claims.get((view.fabric or FABRIC_NAME, job.namespace), ())
        state = self._jobs.get(uid)
        enough = state is not None and state.explained >= CLEAR_AFTER
        known = enough or now - first_seen > EXPIRE_SECONDS
        return JobLinks(claim_of_job(claims, uid, now), known)

    def slow_links(self) -> dict[str, SlowLinks]:
        """Return the slow links by Fabric."""
        now = time.time()
        by_fabric: dict[str, dict[str, Sequence[Claim]]] = {}
        for (fabric, namespace), claims in self._claims.items():
            by_fabric.setdefault(fabric, {})[namespace] = claims
        return {fabric: slow_links(claims, now) for fabric, claims in by_fabric.items()}

    def domain_ratios(self) -> dict[tuple[str, str], float]:
        """Return the slowdown of each named link, by its level and domain."""
        found: dict[tuple[str, str], float] = {}
        for fabric, slow in self.slow_links().items():
            for link, factor in slow.named().items():
                level = self._levels[fabric][len(link) - 1]
                key = level, link[-1]
                found[key] = max(found.get(key, 1.0), factor)
        return found

    def forget(self, uid: str) -> None:
        """Drop the report of a job that does not exist any more."""
        self._jobs.pop(uid, None)
        self._first_seen.pop(uid, None)

    def close(self) -> None:
        """End the explanations."""
        if self._task is not None:
            self._task.cancel()

    def _take(
        self, job: JobRecord, checked: Job | list[Problem], levels: Levels, block: int, said: Any
    ) -> None:
        """Keep the transfers that a job reports for the next explanation of its namespace."""
        view, before = job.view, self._jobs.pop(job.uid, None)
        names = tuple(level.name for level in levels)
        ranks = None if isinstance(checked, list) else ranks_of(view, checked, levels, said)
        if ranks is None:
            return
        fabric = view.fabric or FABRIC_NAME
        if self._levels.setdefault(fabric, names) != names:
            self._levels[fabric] = names  # what is known names links by other levels
            self._claims = {key: value for key, value in self._claims.items() if key[0] != fabric}
            self._jobs = {u: state for u, state in self._jobs.items() if state.scope[0] != fabric}
        scope, now = (fabric, job.namespace), time.time()
        if before is None or (before.attempt, before.ranks) != (view.attempt, ranks):
            before = _JobState(job.uid, scope, view.attempt, ranks, block, now)
        self._jobs[job.uid] = replace(before, block=block, at=now, report=said["transfers"])
        self._due[scope] = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._explain_due(), name="slow links")

    async def _explain_due(self) -> None:
        while self._due:
            scope = min(self._due, key=lambda each: self._not_before.get(each, 0.0))
            left = self._not_before.get(scope, 0.0) - time.monotonic()
            if left > 0:
                await self._sleep(left)
                continue
            del self._due[scope]
            start = time.monotonic()
            try:
                await self._explain(scope)
            except Exception:
                # What one namespace reports must not stop the explanations of others.
                log.exception("the links of namespace %s could not be explained", scope[1])
            end = time.monotonic()
            self._not_before[scope] = end + self._interval
            await self._sleep(min(MAX_PAUSE_SECONDS, PAUSE_RATIO * (end - start)))

    async def _explain(self, scope: _Scope) -> None:
        now = time.time()
        jobs = [
            state
            for state in self._jobs.values()
            if state.scope == scope and now - state.at <= EXPIRE_SECONDS
        ]
        before, levels = self._claims.get(scope, ()), self._levels.get(scope[0])
        read, claims = await asyncio.to_thread(_explained, jobs, before, now)
        if self._levels.get(scope[0]) != levels:
            return  # the Fabric has other levels since
        for old, new in zip(jobs, read, strict=True):
            current = self._jobs.get(old.uid)
            if current is old:
                self._jobs[old.uid] = new
            elif current is not None and current.ranks is old.ranks:  # it has a newer report
                later = replace(new, block=current.block, at=current.at, report=current.report)
                self._jobs[old.uid] = later
        self._claims[scope] = claims
        if not claims:
            del self._claims[scope]
        for state in jobs:
            was = claim_of_job(before, state.uid, now)
            if was != claim_of_job(claims, state.uid, now) or state.explained < CLEAR_AFTER:
                self._wake(state.uid)


def _new_block(state: _JobState | None, view: JobView, report: Any) -> int | None:
    """Return the number of the block of samples in a report; None if it has no new one."""
    found = report.get("transfers") if isinstance(report, dict) else None
    block = block_of_report(found)
    if block is None or report.get("attempt", view.attempt) != view.attempt:
        return None
    is_known = state is not None and (state.attempt, state.block) == (view.attempt, block)
    return None if is_known else block


def ranks_of(view: JobView, job: Job, levels: Levels, said: Any = None) -> JobRanks | None:
    """Return the ranks of a placed job; None if its groups show nothing about links.

    `said` is the report of the trainer, which may have chosen another size of racks. No ranks are
    returned for a job on one node, and one whose Fabric or layout is another one than that of the
    placement.
    """
    placement = view.placement
    if placement is None or [use["level"] for use in placement["levels"]] != [
        level.name for level in levels
    ]:
        return None
    nodes, gpus = tuple(paths_of(placement["blocks"])), int(placement["gpusPerNode"])
    if len(nodes) < 2 or len(nodes) * gpus != job.layout.world_size:
        return None
    depths = (depth for depth, level in enumerate(levels[:-1], 1) if level.nvlink)
    return JobRanks(
        job.layout,
        nodes,
        gpus,
        nvlink_depth=next(depths, None),
        copies_per_rack=_copies_per_rack(job, said),
    )


def _copies_per_rack(job: Job, said: Any) -> int:
    """Return the size of racks that a trainer says that it has chosen, or that of the job."""
    training = job.spec.training
    if training is None:
        return 1
    if training.communication is not None and training.communication.autotune:
        tuning = CommunicationTuning.from_untrusted(
            said.get("communication") if isinstance(said, dict) else None
        )
        if tuning is not None and job.layout.replicate % tuning.setting.copies_per_rack == 0:
            return tuning.setting.copies_per_rack
    return training.gradient_sync.copies_per_rack


def _explained(
    jobs: Sequence[_JobState], claims: Sequence[Claim], now: float
) -> tuple[list[_JobState], tuple[Claim, ...]]:
    """Read the new reports of the jobs of a namespace, and return its claims after them."""
    read = [state if state.report is None else state.read() for state in jobs]
    evidence: list[JobEvidence] = []
    left = MAX_OBSERVATIONS
    newest_first = sorted(zip(jobs, read, strict=True), key=lambda pair: -pair[0].at)
    for old, new in sorted(newest_first, key=lambda pair: pair[0].report is None):
        if new.observed and (len(new.observed) <= left or not evidence):
            evidence.append(JobEvidence(new.observed, fresh=old.report is not None))
            left -= len(new.observed)
    return read, decide_claims(claims, evidence, now)
