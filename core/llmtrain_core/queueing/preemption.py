"""Choose the jobs to preempt so that a whole gang fits: the fewest, and of those sets the cheapest.

Only whole jobs are preempted: those of strictly lower priority, and those of the same priority that
another queue has not admitted. The gang must then fit into an allowed domain. A set that does not
make enough room is discarded: no job is preempted for part of a gang.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llmtrain_core.queueing.capacity import Domain, FreeCapacity, RequestClass
from llmtrain_core.queueing.types import Allocation, PendingJob

SEARCH_BUDGET = 500
"""Sets tried per size. Below it the answer is exact; beyond it, the best set found."""
MAX_CONFIRMATIONS = 8
"""Sets of one size that the placement confirms, cheapest first."""

UNADMITTED_SECONDS = 300.0
"""How long a job that another queue has not admitted keeps its nodes from one that waits for
admission, too. Otherwise both would take the nodes from each other."""

Victims = tuple[Allocation, ...]


def may_take_nodes(job: PendingJob, held: Allocation, now: float) -> bool:
    """Return True if a pending job may take the nodes of another one.

    It may preempt jobs of lower priority. It may also take nodes that a job of the same priority
    does not use yet, because another queue has not admitted it.
    """
    if not held.preemptible or held.priority > job.priority:
        return False
    if job.can_preempt and held.priority < job.priority:
        return True
    if held.unadmitted_since is None:
        return False
    return not job.awaits_admission or now - held.unadmitted_since >= UNADMITTED_SECONDS


def find_victims(
    requests: RequestClass,
    nodes: int,
    capacity: FreeCapacity,
    lower: Sequence[Allocation],
    confirm: Callable[[Victims], bool],
) -> Victims | None:
    """Return the jobs to preempt for a gang of `nodes` nodes, or None if no set is enough.

    `lower` are the jobs that may be preempted. `confirm` is True if the placement then succeeds.
    """
    domains = [
        domain
        for domain in _domain_victims(requests, nodes, capacity, lower)
        if domain.min_victims is not None
    ]
    largest = max((len(domain.candidates) for domain in domains), default=0)
    for size in range(1, largest + 1):
        found = [
            chosen
            for domain in domains
            if domain.min_victims is not None and domain.min_victims <= size
            for chosen in _victim_sets(domain, size, nodes, capacity, requests)
        ]
        for chosen in sorted(found, key=_cost)[:MAX_CONFIRMATIONS]:
            if confirm(chosen):
                return chosen
    return None


@dataclass(frozen=True, slots=True)
class _DomainVictims:
    """One domain, and the jobs whose preemption frees nodes in it, most nodes first."""

    domain: Domain
    free: int
    candidates: tuple[Allocation, ...]
    gains: tuple[int, ...]
    """Nodes of the domain that each candidate holds and that do not fit a block now."""
    min_victims: int | None
    """Lower bound on the jobs to preempt; None: not even all are enough."""


def _domain_victims(
    requests: RequestClass, nodes: int, capacity: FreeCapacity, lower: Sequence[Allocation]
) -> Iterator[_DomainVictims]:
    for domain in sorted(set(requests.domains.values())):
        free = capacity.free_nodes(requests, domain)
        gains = [(_gain(requests, domain, capacity, job), job) for job in lower]
        useful = sorted(
            (pair for pair in gains if pair[0]),
            key=lambda pair: (-pair[0], pair[1].lost_work, pair[1].priority, pair[1].uid),
        )
        yield _DomainVictims(
            domain,
            free,
            tuple(job for _, job in useful),
            tuple(gain for gain, _ in useful),
            _min_count([gain for gain, _ in useful], nodes - free),
        )


def _gain(requests: RequestClass, domain: Domain, capacity: FreeCapacity, job: Allocation) -> int:
    return sum(
        requests.domains.get(node) == domain and not capacity.node_fits(requests, node)
        for node in job.nodes
        if node not in capacity.excluded
    )


def _min_count(gains: Sequence[int], missing: int) -> int | None:
    for count, gain in enumerate(gains, 1):
        missing -= gain
        if missing <= 0:
            return count
    return None


def _victim_sets(
    domain: _DomainVictims, size: int, nodes: int, capacity: FreeCapacity, requests: RequestClass
) -> list[Victims]:
    """Return sets of this size that free enough nodes, by depth-first search with a bound."""
    trial = capacity.copy()
    found: list[Victims] = []
    budget = SEARCH_BUDGET

    def descend(start: int, chosen: Victims, missing: int) -> None:
        nonlocal budget
        left = size - len(chosen)
        if left == 0:
            budget -= 1
            if trial.free_nodes(requests, domain.domain) >= nodes:
                found.append(chosen)
            return
        for index in range(start, len(domain.candidates) - left + 1):
            # Gains decrease: if the next ones are not enough, no later ones are.
            if budget <= 0 or sum(domain.gains[index : index + left]) < missing:
                return
            job = domain.candidates[index]
            trial.release(job.nodes, job.resources)
            descend(index + 1, (*chosen, job), missing - domain.gains[index])
            trial.allocate(job.nodes, job.resources)

    descend(0, (), nodes - domain.free)
    return found


def _cost(chosen: Victims) -> tuple[float, list[int], list[str]]:
    """Return the sort key of a set: least work lost, then the lowest priorities."""
    priorities = sorted((job.priority for job in chosen), reverse=True)
    return sum(job.lost_work for job in chosen), priorities, sorted(job.uid for job in chosen)
