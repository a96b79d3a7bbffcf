"""Who has to stop so that a whole gang fits: the fewest jobs, and of those sets the cheapest.

Only jobs of strictly lower priority, only whole, and only if the gang then fits into an allowed
domain. A set of victims that does not do is no set at all: nobody stops for half a gang.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llmtrain_core.queueing.capacity import Domain, Room, Shape
from llmtrain_core.queueing.types import Running

SEARCH_BUDGET = 500
"""Sets looked at per size. Below it the answer is exact; beyond it, the best set seen."""
CONFIRMATIONS = 8
"""Sets of one size that are put to the placement, cheapest first."""

Victims = tuple[Running, ...]


def victims(
    shape: Shape,
    nodes: int,
    room: Room,
    lower: Sequence[Running],
    accept: Callable[[Victims], bool],
) -> Victims | None:
    """Return the jobs to stop for a gang of `nodes` nodes, or None where stopping does not help.

    `lower` are the jobs that may be stopped; `accept` asks the placement for the last word.
    """
    fields = [field for field in _fields(shape, nodes, room, lower) if field.least is not None]
    largest = max((len(field.lower) for field in fields), default=0)
    for size in range(1, largest + 1):
        found = [
            chosen
            for field in fields
            if field.least is not None and field.least <= size
            for chosen in _sets(field, size, nodes, room, shape)
        ]
        for chosen in sorted(found, key=_cost)[:CONFIRMATIONS]:
            if accept(chosen):
                return chosen
    return None


@dataclass(frozen=True, slots=True)
class _Field:
    """One domain, and those whose leaving would make room in it, most room first."""

    domain: Domain
    free: int
    lower: tuple[Running, ...]
    gains: tuple[int, ...]
    """Nodes of the domain that each of them sits on and that have no room now."""
    least: int | None
    """So many have to leave at least; None: not even all are enough."""


def _fields(shape: Shape, nodes: int, room: Room, lower: Sequence[Running]) -> Iterator[_Field]:
    for domain in sorted(set(shape.domains.values())):
        free = room.free_in(shape, domain)
        gains = [(_gain(shape, domain, room, job), job) for job in lower]
        useful = sorted(
            (pair for pair in gains if pair[0]),
            key=lambda pair: (-pair[0], pair[1].lost_work, pair[1].priority, pair[1].uid),
        )
        yield _Field(
            domain,
            free,
            tuple(job for _, job in useful),
            tuple(gain for gain, _ in useful),
            _least([gain for gain, _ in useful], nodes - free),
        )


def _gain(shape: Shape, domain: Domain, room: Room, job: Running) -> int:
    return sum(
        shape.domains.get(node) == domain and not room.has_room(shape, node)
        for node in job.nodes
        if node not in room.blocked
    )


def _least(gains: Sequence[int], missing: int) -> int | None:
    for count, gain in enumerate(gains, 1):
        missing -= gain
        if missing <= 0:
            return count
    return None


def _sets(
    field: _Field, size: int, nodes: int, room: Room, shape: Shape
) -> list[tuple[Running, ...]]:
    """Return sets of this size that make enough room, by depth-first search with a bound."""
    trial = room.copy()
    found: list[Victims] = []
    budget = SEARCH_BUDGET

    def descend(start: int, chosen: Victims, missing: int) -> None:
        nonlocal budget
        left = size - len(chosen)
        if left == 0:
            budget -= 1
            if trial.free_in(shape, field.domain) >= nodes:
                found.append(chosen)
            return
        for index in range(start, len(field.lower) - left + 1):
            # Gains fall from here on: where the next ones are not enough, none later are.
            if budget <= 0 or sum(field.gains[index : index + left]) < missing:
                return
            job = field.lower[index]
            trial.give(job.nodes, job.takes)
            descend(index + 1, (*chosen, job), missing - field.gains[index])
            trial.take(job.nodes, job.takes)

    descend(0, (), nodes - field.free)
    return found


def _cost(chosen: Victims) -> tuple[float, list[int], list[str]]:
    """Order sets of one size: least work lost, then the lowest priorities."""
    priorities = sorted((job.priority for job in chosen), reverse=True)
    return sum(job.lost_work for job in chosen), priorities, sorted(job.uid for job in chosen)
