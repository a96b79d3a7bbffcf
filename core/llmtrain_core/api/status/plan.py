"""Status of the plan of an `LLMTrainingJob`: what it needs and how long it takes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmtrain_core.api.base import ApiModel
from llmtrain_core.api.status.fields import Amount, Count, LongText, ShortText


class PlannedFlops(ApiModel):
    """FLOPs per token, forward and backward, in two conventions."""

    full_attention: Count
    """All attention scores are counted."""
    causal_attention: Count
    """Only attention scores that the causal mask keeps are counted."""


class PlannedMemory(ApiModel):
    """GPU memory of the rank that needs the most."""

    per_gpu_bytes: Annotated[dict[str, Count], Field(max_length=16)]
    """Bytes by part: weights, gradients, optimizer, gathered, activations, logits and margins."""
    total_bytes: Count
    """Sum of all parts in bytes."""
    capacity_bytes: Count | None = None
    """Memory of the GPU in bytes."""
    fits: bool | None = None
    """Whether the total, with margins, fits into the memory of the GPU."""


class PlannedStep(ApiModel):
    """Estimated time of an optimizer step."""

    seconds: Amount
    """Time of a step in seconds."""
    compute_seconds: Amount
    """Compute time of the slowest rank in seconds, without the pipeline bubble."""
    exposed: Annotated[dict[str, Amount], Field(max_length=8)]
    """Communication time in seconds that does not overlap with computation, by kind of group."""
    collectives: Annotated[dict[str, Amount], Field(max_length=16)] | None = None
    """Time in seconds of the collectives, overlapping or not, by kind of group. Scalars and the
    pipeline's transfers are not included, as in the trainer's metrics."""


class Measured(ApiModel):
    """Comparison of the plan with measurements."""

    attempt: Count
    """Measured attempt."""
    from_step: Count
    """First observed step of the attempt."""
    at_step: Count | None = None
    """Step at which the figures were measured."""
    step_seconds: Amount | None = None
    """Smoothed time of the last steps in seconds."""
    error_ratio: Amount | None = None
    """Ratio of measured to planned step time."""


class PlanStatus(ApiModel):
    """Estimated resource needs and duration, corrected by measurements."""

    hardware: ShortText | None = None
    """GPU type of the plan, from node labels. Absent if unknown."""
    gpus: Count
    """Number of GPUs of the job."""
    parameters: Count
    """Number of parameters of the model."""
    trainable_parameters: Count | None = None
    """Number of trainable parameters: with training.lora, the adapters only."""
    active_parameters: Count | None = None
    """Number of parameters used per token: of the experts, only the selected ones."""
    tokens: Count
    """Number of training tokens of the whole run."""
    flops_per_token: PlannedFlops
    """FLOPs per token."""
    total_flops: Amount
    """FLOPs of the whole run, in the causal convention."""
    memory: PlannedMemory
    """GPU memory of the rank that needs the most."""
    bubble: Amount
    """Share of a step in which the pipeline is idle."""
    step: PlannedStep | None = None
    """Time of a step. Absent if the GPU type is unknown."""
    mfu: Amount | None = None
    """Model FLOPs utilization, in the causal convention."""
    tokens_per_second: Amount | None = None
    """Tokens per second over all ranks."""
    total_seconds: Amount | None = None
    """Time of the whole run in seconds, without failures and checkpoints."""
    days: Amount | None = None
    """Time of the whole run in days, without failures and checkpoints."""
    measured: Measured | None = None
    """Comparison of the plan with measurements."""
    assumptions: Annotated[list[LongText], Field(max_length=8)] | None = None
    """Assumptions of the plan."""
    note: LongText | None = None
    """Why parts of the plan are missing."""
