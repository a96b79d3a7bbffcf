"""Find the smallest number of GPUs and the nearest batch that work.

The number of GPUs is a multiple of the server size. Feasibility is not monotonic, because the
number must also split into degrees that divide the model and the batch. Powers of two and their
halfway points are tried upward from an arithmetic lower bound. If at most `WINDOW` numbers lie
below the first that works, all are tried; otherwise bisection first reduces them to `WINDOW`. The
result always works. It is the minimum if it is within `WINDOW` servers of the bound, otherwise only
numbers just below it are excluded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from math import ceil, floor, log10

from llmtrain_core.errors import PlanError
from llmtrain_core.plan.constants import constants_of
from llmtrain_core.plan.hardware import Accelerator
from llmtrain_core.plan.memory.training_memory import FRAGMENTATION, RUNTIME_BYTES
from llmtrain_core.plan.model.flops import days_at, training_flops_per_token
from llmtrain_core.plan.model.parameters import count_parameters
from llmtrain_core.plan.search.layouts import (
    SearchResult,
    SearchSpace,
    any_layout_fits,
    fits_with_recomputation,
    search,
    setups,
)
from llmtrain_core.plan.training_setup import MASTER_BYTES, TrainingSetup

MOST_GPUS = 65536
WINDOW = 16
"""Maximum number of server counts that are tried exhaustively."""
STATES = 4
"""Values per parameter: weight, gradient and two moments, sharded by FSDP."""


def least_gpus(
    base: TrainingSetup,
    hardware: Accelerator,
    more_than: int,
    space: SearchSpace,
    limit: int = MOST_GPUS,
) -> int | None:
    """Return the smallest number of GPUs above `more_than` that fits, or None."""
    node = int(hardware.node.value)
    low = max(more_than // node + 1, _servers_for_state(base, hardware))
    found = _least(lambda n: any_layout_fits(base, hardware, n * node, space), low, limit // node)
    return None if found is None else found * node


def _servers_for_state(base: TrainingSetup, hardware: Accelerator) -> int:
    """Return the minimum number of servers that the training state fits on."""
    if base.sharding != "fsdp2" or base.shape.adapters is not None:
        return 1
    state = STATES * MASTER_BYTES[base.precision] * count_parameters(base.shape).total
    room = hardware.memory.value - RUNTIME_BYTES
    return max(1, ceil(state * (1 + FRAGMENTATION) / room / hardware.node.value))


def gpus_for_deadline(
    base: TrainingSetup,
    hardware: Accelerator,
    tokens: int,
    days: float,
    space: SearchSpace,
    limit: int = MOST_GPUS,
) -> tuple[int, SearchResult]:
    """Return the smallest number of GPUs that meets the deadline. Raises PlanError if none does."""
    node = int(hardware.node.value)
    most = limit // node

    @cache
    def found(servers: int) -> SearchResult:
        return search(base, hardware, servers * node, space)

    def taken(servers: int) -> float:
        best = found(servers).best
        return float("inf") if best is None else tokens / best.tokens_per_second / 86400

    low = max(_servers_for_speed(base, hardware, tokens, days), _servers_for_state(base, hardware))
    servers = None if low > most else _least(lambda n: taken(n) <= days, int(low), most)
    if servers is not None:
        return servers * node, found(servers)
    fastest = _fastest(taken, most)
    raise PlanError(
        f"no layout of up to {limit} {hardware.name} trains {tokens:.3g} tokens in {days:g} days",
        f"use a deadline of {_up(taken(fastest)):g} days or more, or fewer tokens"
        if taken(fastest) < float("inf")
        else "nothing fits however long it takes: use another batch or larger GPUs",
    )


def _servers_for_speed(
    base: TrainingSetup, hardware: Accelerator, tokens: int, days: float
) -> float:
    """Return the minimum number of servers by the FLOPs of products alone."""
    constants = constants_of(hardware.name)
    efficiency = max(constants.efficiency(base.precision), constants.attention_efficiency)
    flops = training_flops_per_token(base.shape, "causal-attention") * tokens
    alone = days_at(flops, 1, hardware.peak(base.precision), efficiency)
    needed = alone / days / hardware.node.value
    return ceil(needed) if needed < MOST_GPUS else needed


def _fastest(taken: Callable[[int], float], most: int) -> int:
    """Return the fastest number of the grid, searched downward while fewer are faster.

    The grid is that of `_least`, so a deadline of this time is found again.
    """
    best = None
    for servers in sorted(_grid(1, most), reverse=True):
        if best is not None and taken(servers) > taken(best):
            break
        best = servers
    return best or most


def _least(works: Callable[[int], bool], low: int, most: int) -> int | None:
    works = cache(works)
    high = next((n for n in _grid(low, most) if works(n)), None)
    if high is None:
        return None
    while high - low > WINDOW:
        middle = (low + high) // 2
        if works(middle):
            high = middle
        else:
            low = middle + 1
    return next((n for n in range(low, high) if works(n)), high)


def _grid(low: int, most: int) -> Iterator[int]:
    """Yield powers of two and 1.5 times powers of two, which have the most divisors."""
    power = 1
    while power <= most:
        yield from (n for n in sorted({power, power * 3 // 2}) if low <= n <= most)
        power *= 2


def _up(days: float) -> float:
    """Round up to three digits."""
    scale = 10.0 ** (2 - floor(log10(days)))
    return ceil(days * scale) / scale


def nearest_batch(
    base: TrainingSetup, hardware: Accelerator, gpus: int, largest: int
) -> int | None:
    """Return the batch nearest to the base's that `gpus` GPUs can split and that fits."""
    wanted = base.global_batch
    options = setups(base, hardware, gpus, SearchSpace(any_batch=True, largest_batch=largest))
    ordered = sorted(options, key=lambda option: abs(option.global_batch - wanted))
    capacity = int(hardware.memory.value)
    return next(
        (
            o.global_batch
            for o in ordered
            if fits_with_recomputation(o, capacity, SearchSpace().checkpointings)
        ),
        None,
    )


def nearest_smaller(
    base: TrainingSetup, hardware: Accelerator, gpus: int, space: SearchSpace
) -> int | None:
    """Return the largest number of the grid below `gpus` that can run the base."""
    numbers = sorted(_grid(1, gpus - 1), reverse=True)
    return next((n for n in numbers if any_layout_fits(base, hardware, n, space)), None)
