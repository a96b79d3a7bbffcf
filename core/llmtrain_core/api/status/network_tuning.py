"""Status of `network.tuning`: the variables that were tried, and the fastest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel
from llmtrain_core.api.defaults import MAX_NETWORK_TRIALS
from llmtrain_core.api.job import MAX_CANDIDATE_VALUE, is_candidate_name
from llmtrain_core.api.status.fields import Amount, ShortText

TrialVariables = Annotated[
    dict[str, Annotated[str, Field(max_length=MAX_CANDIDATE_VALUE)]], Field(max_length=64)
]


class NetworkTrial(ApiModel):
    """Variables that were tried. One without a time and without a failure is running."""

    variables: TrialVariables
    """Variables of the trial besides those of the job. Empty: the job as it is."""
    step_seconds: Amount | None = None
    """Median time of a step in seconds. A step waits for all ranks."""
    failure: ShortText | None = None
    """Reason of the failure that ended the trial. Interrupted: the pods ended in the middle of it,
    twice."""


class NetworkTuningStatus(ApiModel):
    """Trials of variables on a placement."""

    state: Literal["Trying", "Chosen"]
    """Trying: in trials. Chosen: after the trials."""
    placement: Annotated[str, Field(max_length=64)]
    """Digest of the nodes and of the candidates. Times of another placement are not used."""
    fastest: TrialVariables
    """Variables of the fastest trial so far, for network.nccl. Empty: the job as it is."""
    trials: Annotated[list[NetworkTrial], Field(max_length=MAX_NETWORK_TRIALS)]
    """Trials in the order in which they ran; the first one is that of the job as it is."""


def variables_text(variables: Mapping[str, str]) -> str:
    """Return the variables of a trial in one line."""
    return " ".join(f"{name}={value}" for name, value in variables.items()) or "the job as it is"


def read_network_tuning(value: Any) -> NetworkTuningStatus | None:
    """Return what a trainer, or a status, says of its trials; None if it is not valid."""
    found = NetworkTuningStatus.from_untrusted(value)
    if found is None:
        return None
    sets = (found.fastest, *(trial.variables for trial in found.trials))
    texts = (found.placement, *(trial.failure or "" for trial in found.trials))
    names_fit = all(is_candidate_name(name) for each in sets for name in each)
    values_fit = all(value.isprintable() for each in sets for value in each.values())
    return found if names_fit and values_fit and all(map(str.isprintable, texts)) else None
