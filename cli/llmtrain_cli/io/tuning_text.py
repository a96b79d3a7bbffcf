"""The result of a tuning job, as text of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import yaml

from llmtrain_cli.io.output import seconds_text
from llmtrain_core.api.status.network_tuning import (
    NetworkTrial,
    NetworkTuningStatus,
    variables_text,
)


def tuning_lines(found: NetworkTuningStatus, own: Mapping[str, str]) -> Iterator[str]:
    """Yield the trials and the variables of the fastest one. `own`: `network.nccl` of the job."""
    first = found.trials[0].step_seconds if found.trials else None
    yield f"{'STEP':<12}{'OF THE JOB':<12}VARIABLES"
    for trial in found.trials:
        sign = "*" if trial.variables == found.fastest and trial.step_seconds else " "
        variables = variables_text(trial.variables)
        yield f"{_time(trial):<12}{_share(trial, first):<12}{sign} {variables}"
    yield ""
    if found.state == "Trying":
        yield f"The trials are not complete; the fastest so far: {variables_text(found.fastest)}"
    elif not found.fastest:
        yield "No variables are faster than the job as it is. It needs no change."
    else:
        yield "The fastest is marked with *. Put it into the job:"
        yield ""
        wire = {"network": {"nccl": {**own, **found.fastest}}}
        yield yaml.safe_dump({"spec": wire}, sort_keys=False).rstrip()


def _time(trial: NetworkTrial) -> str:
    if trial.step_seconds is not None:
        return seconds_text(trial.step_seconds)
    return trial.failure[:11] if trial.failure else "running"


def _share(trial: NetworkTrial, first: float | None) -> str:
    if not trial.step_seconds or not first:
        return ""
    return f"{trial.step_seconds / first:.1%}"
