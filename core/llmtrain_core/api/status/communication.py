"""Status of `training.communication.autotune`: the settings that were tried, and the fastest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel
from llmtrain_core.api.defaults import MAX_COMMUNICATION_TRIALS
from llmtrain_core.api.status.fields import Amount, Count


class CommunicationSetting(ApiModel):
    """A setting of gradient synchronization."""

    copies_per_rack: Annotated[int, Field(ge=1, le=65536)] = 1
    """Number of model replicas whose gradients are summed first; 1 for a flat all-reduce."""
    overlap: bool = False
    """Whether sums are transferred during the backward pass."""
    bucket_bytes: Count = 0
    """Minimum size of a message in bytes; 0 for a message per layer."""
    chunks: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of parts of a message."""


class CommunicationTrial(CommunicationSetting):
    """A setting that was tried."""

    step_seconds: Amount | None = None
    """Median time of a step in seconds, on the slowest rank. Absent if the ranks ended in the
    middle of the trial; the setting is not tried again then."""


class CommunicationTuning(ApiModel):
    """Trials of communication settings on a placement."""

    state: Literal["Trying", "Chosen", "Reused"]
    """Trying: in trials. Chosen: after the trials. Reused: chosen earlier on the same placement."""
    setting: CommunicationSetting
    """Current setting."""
    from_step: Count
    """First step with the current setting, since the last start."""
    trials: Annotated[list[CommunicationTrial], Field(max_length=MAX_COMMUNICATION_TRIALS)]
    """Settings that were tried, in this order; the first one is that of the job."""
