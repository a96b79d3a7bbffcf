"""GPU time by what the GPUs of jobs do: the figures of goodput.

The number of GPUs in each state changes only when a job changes. So each change adds the time since
the last one, and the sums are exact at any instant, however rarely they are read.

Steps that a failure undoes were counted as training before. The job takes them again, and that time
is counted as lost instead: each second is in one sum, and no sum ever decreases.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.job import JobView

GpuUse = Literal["training", "starting", "restarting", "spare", "waiting", "suspended", "lost"]
USES: tuple[GpuUse, ...] = get_args(GpuUse)

_BY_PHASE: Mapping[str, GpuUse] = {
    "Pending": "waiting",
    "Queued": "waiting",
    "Starting": "starting",
    "Running": "training",
    "Restarting": "restarting",
    "Suspended": "suspended",
}
_BEFORE_TRAINING = frozenset({"preparing", "starting"})
"""Phases of the trainer in which the pods run and nothing is trained yet."""


def gpu_uses(view: JobView, checked: Callable[[], Job | list[Problem]]) -> dict[GpuUse, int]:
    """Return what the GPUs of a job do now: those that it holds, or those that it waits for.

    `checked` is called only for a job without a placement: a validation takes milliseconds.
    """
    use = _BY_PHASE.get(view.phase)
    if use is None or view.is_finished or not view.is_ours:
        return {}
    placement = view.stored_placement
    if placement is None:
        # A job without a placement holds nothing, whatever it did before.
        use = "suspended" if use == "suspended" else "waiting"
        job = checked()
        return {} if isinstance(job, list) else {use: job.layout.world_size}
    if use == "training" and view.progress.get("phase") in _BEFORE_TRAINING:
        use = "starting"
    spares = len(view.held_nodes) - len(view.placed_nodes)
    gpus = int(placement["gpusPerNode"])
    found: dict[GpuUse, int] = {use: len(view.placed_nodes) * gpus}
    return {**found, "spare": spares * gpus} if spares else found


class GpuSeconds:
    """GPU-seconds by use, on a monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._since = clock()
        self._jobs: dict[str, Mapping[GpuUse, int]] = {}
        self._gpus: Counter[GpuUse] = Counter()
        self._undone: dict[str, float] = {}
        """GPU-seconds of training that a job has to repeat."""
        self._seconds: dict[GpuUse, float] = dict.fromkeys(USES, 0.0)

    def update(self, uid: str, gpus: Mapping[GpuUse, int]) -> None:
        """Set what the GPUs of a job do from now on; nothing for a job that ended."""
        before = self._jobs.get(uid, {})
        if gpus == before:
            return
        self._advance()
        self._gpus.subtract(before)
        self._gpus.update(gpus)
        if gpus:
            self._jobs[uid] = gpus
        else:
            del self._jobs[uid]
            self._undone.pop(uid, None)

    def undo(self, uid: str, gpu_seconds: float) -> None:
        """Count this much of the next training of a job as lost: a failure has undone as much."""
        self._advance()
        if uid in self._jobs:  # it may have been deleted meanwhile
            self._undone[uid] = self._undone.get(uid, 0.0) + gpu_seconds

    def totals(self) -> dict[GpuUse, float]:
        """Return the sums up to now."""
        self._advance()
        return dict(self._seconds)

    def _advance(self) -> None:
        now = self._clock()
        passed, self._since = now - self._since, now
        for use, gpus in self._gpus.items():
            self._seconds[use] += gpus * passed
        repeated = sum(self._repeat(uid, passed) for uid in list(self._undone))
        self._seconds["training"] -= repeated
        self._seconds["lost"] += repeated

    def _repeat(self, uid: str, passed: float) -> float:
        """Return the part of the time just counted in which a job repeated its training."""
        trained = self._jobs.get(uid, {}).get("training", 0) * passed
        repeated = min(trained, self._undone[uid])
        self._undone[uid] -= repeated
        if self._undone[uid] <= 0:
            del self._undone[uid]
        return repeated
