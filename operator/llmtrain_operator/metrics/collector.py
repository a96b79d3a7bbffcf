"""Metrics of jobs and nodes, computed from the caches at each scrape.

Only a leader whose caches are complete has them, so that no job is counted by two replicas.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from llmtrain_core.queueing.quarantine import Quarantine
from llmtrain_core.topology.levels import Levels
from llmtrain_operator.cache.informers import Informers
from llmtrain_operator.config import START_RESERVATION_SECONDS
from llmtrain_operator.metrics.jobs import JobFigures, job_figures, oldest_wait
from llmtrain_operator.metrics.nodes import NodeFigures, foreign_gpus, gpus_by_node, node_figures
from llmtrain_operator.scheduler.held_nodes import held_by_jobs
from llmtrain_operator.scheduler.spares import spare_allocations, spare_usage
from llmtrain_operator.scheduler.usage import usage

_PREFIX = "llmtrain_operator_"
_JOB = ("namespace", "job")


class ClusterCollector(Collector):
    """The gauges of jobs and nodes."""

    def __init__(
        self,
        informers: Informers,
        levels: Callable[[str | None], Levels],
        quarantine: Callable[[], Quarantine],
        queue_depth: Callable[[], int],
        start_reservation: float = START_RESERVATION_SECONDS,
        link_ratios: Callable[[], Mapping[tuple[str, str], float]] = dict,
    ):
        """Connect to the other parts.

        `levels` returns the levels of a Fabric, of the default one for None. `link_ratios` returns
        the slowdown of each slow link by level and domain.
        """
        self._link_ratios = link_ratios
        self._informers = informers
        self._levels = levels
        self._quarantine = quarantine
        self._queue_depth = queue_depth
        self._start_reservation = start_reservation

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Compute all gauges."""
        yield from self._informer_families()
        if self._informers.synced:
            jobs = [job_figures(record) for record in self._informers.managed_jobs()]
            yield from _job_families(jobs, time.time())
            yield _gauge("queue_depth", "Jobs that wait for a placement.", self._queue_depth())
            yield from self._node_families()
            yield self._link_family()

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return nothing: the names are not computed before the caches are complete."""
        return ()

    def _informer_families(self) -> Iterator[GaugeMetricFamily]:
        text = "Seconds since the last response of the API server to an informer."
        family = _labelled("informer_staleness_seconds", text, "informer")
        for informer in self._informers:
            family.add_metric([informer.name], informer.staleness)
        yield family
        text = "Existing objects whose newest state cannot be read; the log has their UIDs."
        family = _labelled("unreadable_objects", text, "informer")
        for informer in self._informers:
            family.add_metric([informer.name], informer.unreadable)
        yield family

    def _link_family(self) -> GaugeMetricFamily:
        text = "Time of transfers over a slow link, over the usual time. Healthy links have none."
        family = _labelled("link_slowdown_ratio", text, "level", "domain")
        for labels, ratio in self._link_ratios().items():
            family.add_metric(labels, ratio)
        return family

    def _node_families(self) -> Iterator[GaugeMetricFamily]:
        quarantined = self._quarantine().for_all.excluded
        text = "Nodes that no job may use, after failures."
        yield _gauge("quarantined_nodes", text, len(quarantined))
        informers = self._informers
        jobs, pods = list(informers.jobs.values()), informers.pods_with_claims()
        foreign = foreign_gpus(informers.used_by_foreign())
        held = held_by_jobs(informers.managed_jobs(), pods, time.time(), self._start_reservation)
        spares = spare_allocations(informers.managed_jobs(), held)
        figures = node_figures(
            informers.all_nodes(),
            self._levels(None),
            used=gpus_by_node([*usage((), pods, {}, {}), *foreign]),
            held=gpus_by_node([*usage(jobs, pods, {}, held), *foreign, *spare_usage(spares)]),
            quarantined=quarantined,
        )
        yield from _node_families(figures)


def _job_families(jobs: list[JobFigures], now: float) -> Iterator[GaugeMetricFamily]:
    phases = _labelled("job_phase", "1 for the phase of each job.", *_JOB, "phase")
    waiting = _labelled("job_waiting", "1 for why a job has no placement.", *_JOB, "reason")
    text = "Planned seconds of a step, without the correction by measurements."
    steps = _labelled("planned_step_seconds", text, *_JOB)
    text = "Planned seconds per step in the collectives that the trainer measures."
    collectives = _labelled("planned_collective_seconds", text, *_JOB, "group")
    for job in jobs:
        key = (job.namespace, job.name)
        phases.add_metric([*key, job.phase], 1)
        if job.waiting_reason is not None:
            waiting.add_metric([*key, job.waiting_reason], 1)
        if job.planned_step is not None:
            steps.add_metric(key, job.planned_step)
        for group, seconds in job.planned_collectives.items():
            collectives.add_metric([*key, group], seconds)
    by_phase = _labelled("jobs", "Jobs by phase.", "phase")
    for phase, count in Counter(job.phase for job in jobs).items():
        by_phase.add_metric([phase], count)
    text = "Seconds that the job with the longest wait has waited for a placement."
    yield from (
        by_phase,
        phases,
        waiting,
        _gauge("oldest_wait_seconds", text, oldest_wait(jobs, now)),
    )
    yield from (steps, collectives)


def _node_families(figures: NodeFigures) -> Iterator[GaugeMetricFamily]:
    nodes = _labelled("nodes", "Nodes with GPUs by state.", "state")
    for state, count in figures.nodes.items():
        nodes.add_metric([state], count)
    text = "GPUs by state: of all nodes (level and domain are empty), and of each domain."
    gpus = _labelled("gpus", text, "state", "level", "domain")
    for labels, count in figures.gpus.items():
        gpus.add_metric(labels, count)
    blocks = _labelled(
        "largest_free_block_gpus", "The most free GPUs in one domain of a level.", "level"
    )
    for level, count in figures.largest_free_block.items():
        blocks.add_metric([level], count)
    yield from (nodes, gpus, blocks)


def _labelled(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}{name}", text, labels=labels)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}{name}", text, value=value)
