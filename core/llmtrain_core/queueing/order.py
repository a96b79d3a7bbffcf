"""Order of the queue: priority, then the namespace that holds least, then age.

Between namespaces of equal priority the dominant share decides (Ghodsi et al., "Dominant Resource
Fairness", NSDI 2011): the largest fraction that a namespace holds of any one resource, jobs ahead
in the queue included. Waiting weighs in as well, a day as much as the whole cluster, so that no
namespace, however much it holds, waits for ever: only jobs that came less than a day later can
pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby

from llmtrain_core.queueing.types import Running, Waiting

PATIENCE_SECONDS = 86400.0
"""Waiting so long outweighs holding the whole cluster."""


def dominant_share(held: Mapping[str, int], capacity: Mapping[str, int]) -> float:
    """Return the largest fraction of any resource, from 0 to 1 (0 of a resource nobody offers)."""
    shares = (held[name] / total for name, total in capacity.items() if total and held.get(name))
    return max(shares, default=0.0)


def in_order(
    waiting: Iterable[Waiting],
    running: Iterable[Running] = (),
    capacity: Mapping[str, int] | None = None,
    promised: Collection[str] = (),
) -> list[Waiting]:
    """Return the queue, head first. `capacity` is what all nodes together hand out."""
    held: dict[str, dict[str, int]] = {}
    for job in running:
        _add(held.setdefault(job.namespace, {}), job.total)
    ranked = sorted(
        waiting, key=lambda job: (-job.priority, job.uid not in promised, job.since, job.key)
    )
    order: list[Waiting] = []
    for _, equals in groupby(ranked, key=lambda job: (job.priority, job.uid in promised)):
        order += _fairly(list(equals), held, capacity or {})
    return order


def _fairly(
    equals: list[Waiting], held: dict[str, dict[str, int]], capacity: Mapping[str, int]
) -> Iterator[Waiting]:
    """Draw jobs of one priority, oldest first within a namespace; what is drawn counts as held."""
    queues: dict[str, list[Waiting]] = {}
    for job in reversed(equals):
        queues.setdefault(job.namespace, []).append(job)
    keys = {name: _turn(queue[-1], held, capacity) for name, queue in queues.items()}
    while queues:
        name = min(keys, key=lambda name: keys[name])
        job = queues[name].pop()
        yield job
        _add(held.setdefault(name, {}), job.total)
        if queues[name]:
            keys[name] = _turn(queues[name][-1], held, capacity)
        else:
            del queues[name], keys[name]


def _turn(
    job: Waiting, held: Mapping[str, Mapping[str, int]], capacity: Mapping[str, int]
) -> tuple[float, float, str]:
    share = dominant_share(held.get(job.namespace, {}), capacity)
    return share + job.since / PATIENCE_SECONDS, job.since, job.key


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for resource, amount in more.items():
        total[resource] = total.get(resource, 0) + amount
