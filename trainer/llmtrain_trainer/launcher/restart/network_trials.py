"""The trials of `network.tuning`: one generation of ranks each, with other variables.

The state is that of the coordinator and as pure. It is shown in the status of rank 0's pod, and the
operator returns it to a later attempt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from statistics import median

from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.defaults import REASON_LENGTH
from llmtrain_core.api.status.network_tuning import NetworkTrial, NetworkTuningStatus
from llmtrain_core.network.start_trials import Variables, next_trial, start_candidates
from llmtrain_trainer.config import NetworkTuningConfig
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.pod_env import PodEnvironment

WARM_UP_STEPS = 2
"""Steps of each trial that are not measured: they compile and connect."""
INTERRUPTED = "Interrupted"
"""Failure of a trial in the middle of which the pods ended twice. Once may be a coincidence."""


def candidates_of(
    tuning: NetworkTuningConfig, world_size: int, pod: PodEnvironment, given: Collection[str]
) -> Sequence[Variables]:
    """Return the candidates of a job: its own, or those of its network that are not `given`.

    Raises InputError if there are none.
    """
    if tuning.candidates is not None:
        return tuning.candidates
    local = len(pod.ranks)
    nodes = world_size // local
    found = start_candidates(pod.network_row, tuning.gpu_resource, nodes, local, given)
    if not found:
        raise InputError(
            "InvalidSpec",
            f"there is nothing to try on {nodes} nodes with {local} {tuning.gpu_resource} each and"
            f" the network {pod.network_row or 'of an unknown kind'}",
            field="spec.network.tuning.candidates",
            remedy="name the variables to try there",
        )
    return found


class NetworkTrials:
    """The trials of one job."""

    def __init__(
        self,
        candidates: Sequence[Variables],
        known: NetworkTuningStatus | None = None,
        on_change: Callable[[NetworkTuningStatus], None] = lambda status: None,
    ) -> None:
        """`known` is what an earlier attempt has found out. `on_change` gets each new state."""
        self._candidates, self._known, self._on_change = candidates, known, on_change
        self._placement = ""
        self._done: list[NetworkTrial] = []
        self._interrupted: Variables | None = None
        self._current: NetworkTrial | None = None
        self._seconds: list[float] = []

    @property
    def is_of_a_candidate(self) -> bool:
        """Whether the current trial has variables besides those of the job."""
        return self._current is not None and bool(self._current.variables)

    def place(self, nodes: Sequence[str]) -> None:
        """Start on these nodes, in order of rank, or go on after the trials that are known there.

        A trial in the middle of which an earlier attempt ended is repeated once, that of the job as
        it is as often as needed.
        """
        if self._placement:
            return
        described = json.dumps([*nodes, *map(dict, self._candidates)], sort_keys=True)
        self._placement = hashlib.sha256(described.encode()).hexdigest()[:32]
        if self._known is None or self._known.placement != self._placement:
            return
        for trial in self._known.trials:
            if trial.step_seconds is not None or (trial.failure and trial.variables):
                self._done.append(trial)
            else:
                self._interrupted = trial.variables

    def start(self) -> dict[str, str] | None:
        """Start the next trial, or the current one again; return its variables.

        Returns None if an earlier attempt has done all trials.
        """
        self._seconds = []
        if self._current is None:
            _, variables = next_trial(self._candidates, self._done)
            if variables is not None:
                failure = INTERRUPTED if variables == self._interrupted else None
                self._current = NetworkTrial(variables=variables, failure=failure)
            self._report()
        return None if self._current is None else self._current.variables

    def add_step(self, seconds: float) -> None:
        """Add a step of the current trial, as rank 0 has measured it."""
        self._seconds.append(seconds)

    def finish(self) -> bool:
        """Record that the ranks have taken all steps; return whether there is another trial."""
        measured = self._seconds[WARM_UP_STEPS:]
        if not measured:
            return self.fail("NotMeasured")
        return self._end(step_seconds=float(f"{median(measured):.6g}"))

    def fail(self, reason: str) -> bool:
        """Record that the current trial failed; return whether there is another one."""
        return self._end(failure=clean_text(reason, REASON_LENGTH))

    def _end(self, step_seconds: float | None = None, failure: str | None = None) -> bool:
        assert self._current is not None
        variables = self._current.variables
        trial = NetworkTrial(variables=variables, step_seconds=step_seconds, failure=failure)
        self._done.append(trial)
        self._current = None
        self._report()
        return next_trial(self._candidates, self._done)[1] is not None

    def _report(self) -> None:
        fastest, following = next_trial(self._candidates, self._done)
        running = [self._current] if self._current else []
        self._on_change(
            NetworkTuningStatus(
                state="Chosen" if following is None else "Trying",
                placement=self._placement,
                fastest=fastest,
                trials=[*self._done, *running],
            )
        )
