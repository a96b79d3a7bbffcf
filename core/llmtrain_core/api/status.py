"""`LLMTrainingJob`: the status the operator writes. Bounded: O(groups), never O(ranks)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel, list_map
from llmtrain_core.api.defaults import MAX_FAILURES, MAX_NODES, MESSAGE_LENGTH, REASON_LENGTH

Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
Word = Annotated[str, Field(max_length=REASON_LENGTH)]
Sentence = Annotated[str, Field(max_length=MESSAGE_LENGTH)]
Count = Annotated[int, Field(ge=0, le=2**53)]
"""What JSON numbers carry exactly."""
Amount = Annotated[float, Field(ge=0)]
TrainerPhase = Literal[
    "preparing", "starting", "training", "evaluating", "saving", "finished", "failed"
]


class Condition(ApiModel):
    """A metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """What the condition is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: Count = 0
    """Generation of the spec that it speaks of."""
    last_transition_time: Time
    """When the status last changed."""
    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=REASON_LENGTH,
            pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        ),
    ]
    """Why, in one word."""
    message: Annotated[str, Field(max_length=4096)]
    """Why, in a sentence, with the field and the remedy."""


class PlacedBlock(ApiModel):
    """A run of consecutive nodes of the placement inside one nearest domain."""

    path: Annotated[str, Field(max_length=1024)]
    """Domains from far to near, without the node: spine-1/leaf-3."""
    nodes: Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=MAX_NODES)]
    """Node names in order of rank block."""


class LevelUse(ApiModel):
    """How the placement uses one level."""

    level: Word
    """Name of the level."""
    domains: Count
    """Domains used."""
    crossings: Annotated[dict[str, int], Field(max_length=8)] | None = None
    """Groups that span more than one domain of this level, by kind of group."""


class PlacementStatus(ApiModel):
    """Who sits where: block i of the ranks is on the i-th node, read over all blocks in order."""

    attempt: Count
    """The attempt it belongs to."""
    gpus_per_node: Annotated[int, Field(ge=1)]
    """Ranks per node."""
    blocks: Annotated[list[PlacedBlock], Field(max_length=MAX_NODES)]
    """Nodes in order of rank."""
    levels: Annotated[list[LevelUse], Field(max_length=16), list_map("level")]
    """Use of each level, far to near."""
    spares: Annotated[list[PlacedBlock], Field(max_length=1024)] | None = None
    """Nodes that are held for the job to replace a failed one, nearest first."""
    explanation: Sentence = ""
    """The placement in a sentence."""


class BetterPlacement(ApiModel):
    """A place where the job would communicate faster, as far as is free now."""

    attempt: Count
    """The attempt that it is compared with."""
    gain: Annotated[float, Field(ge=1)]
    """Communication time of a step here over what it would be there."""
    summary: Word
    """The place: 4 nodes · 1 leaf."""


class Move(ApiModel):
    """A move that the user asked for, and what it waits for."""

    attempt: Count
    """The attempt that is to move."""
    after_checkpoint: Count
    """It moves once a checkpoint is newer than this step: the newest when it was asked."""


class Collective(ApiModel):
    """Measured cost of one kind of collective, per rank and sampled step."""

    group: Literal["tp", "cp", "dp", "ep", "edp", "rep", "rep-near", "rep-far", "pp", "world"]
    """Kind of parallel group."""
    op: Annotated[str, Field(max_length=64, pattern=r"^[a-z_]{1,64}$")]
    """Operation."""
    count: Count = 0
    """Calls per step."""
    bytes_per_step: Count = 0
    """Bytes handed to it per step."""
    mean_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Mean duration of one call, waiting included."""


class Progress(ApiModel):
    """Where the training is."""

    phase: TrainerPhase | None = None
    """What the trainer does now."""
    step: Count = 0
    """Optimizer steps done."""
    total_steps: Count = 0
    """Optimizer steps to do."""
    loss: float | None = None
    """Training loss of the last step, in nats per token."""
    tokens_per_second: float | None = None
    """Tokens per second over all ranks."""
    mfu: float | None = None
    """Model FLOPs utilisation."""
    eta: Time | None = None
    """When the last step is expected to end."""
    last_checkpoint_step: Count | None = None
    """Step of the newest complete checkpoint."""
    restarts_in_place: Count | None = None
    """Restarts of all ranks inside their running pods, in this attempt. They are no restarts of
    the gang, and `status.restarts` does not count them."""
    held_out_loss_before: float | None = None
    """Held-out loss before the first step, in nats per token."""
    held_out_loss_after: float | None = None
    """Held-out loss after the last step, in nats per token."""
    exact_match_before: float | None = None
    """Share of held-out examples answered to the letter before the first step (objective sft)."""
    exact_match_after: float | None = None
    """The same after the last step."""
    collectives: (
        Annotated[
            list[Collective],
            Field(max_length=32),
            list_map("group", "op"),
        ]
        | None
    ) = None
    """Measured collectives."""


class PlannedFlops(ApiModel):
    """FLOPs of one token, forward and backward, in the two conventions of the field."""

    full_attention: Count
    """Every score is counted."""
    causal_attention: Count
    """Only scores that the causal mask leaves."""


class PlannedMemory(ApiModel):
    """Memory of the GPU that needs the most."""

    per_gpu_bytes: Annotated[dict[str, Count], Field(max_length=16)]
    """Bytes by part: weights, gradients, optimizer, gathered, activations, logits, and margins."""
    total_bytes: Count
    """All parts together."""
    capacity_bytes: Count | None = None
    """What the GPU has."""
    fits: bool | None = None
    """Whether all parts fit, margins included."""


class PlannedStep(ApiModel):
    """Time of one optimizer step."""

    seconds: Amount
    """The whole step."""
    compute_seconds: Amount
    """Work of the slowest rank, bubble not counted."""
    exposed: Annotated[dict[str, Amount], Field(max_length=8)]
    """Seconds of communication that nothing hides, by kind of group."""


class Measured(ApiModel):
    """What the running job showed of the plan."""

    attempt: Count
    """The attempt that is measured."""
    from_step: Count
    """First step that was seen of it."""
    at_step: Count | None = None
    """Step at which the figures were taken."""
    step_seconds: Amount | None = None
    """Time of a step, smoothed over the last ones."""
    error_ratio: Amount | None = None
    """Measured over planned time of a step."""


class PlanStatus(ApiModel):
    """What the job needs and how long it takes, by arithmetic and corrected by measurement."""

    hardware: Word | None = None
    """Kind of GPU that the plan is for, by the labels of nodes; absent: unknown."""
    gpus: Count
    """GPUs of the job."""
    parameters: Count
    """Parameters of the model."""
    trainable_parameters: Count | None = None
    """Those that training changes: adapters only, with `training.lora`."""
    active_parameters: Count | None = None
    """Those that one token meets: of the experts, the chosen ones."""
    tokens: Count
    """Tokens of the whole run."""
    flops_per_token: PlannedFlops
    """FLOPs of one token."""
    total_flops: Amount
    """FLOPs of the whole run, with causal attention."""
    memory: PlannedMemory
    """GPU memory."""
    bubble: Amount
    """Share of a step in which the pipeline has nothing to do."""
    step: PlannedStep | None = None
    """Time of one step, where the GPU is known."""
    mfu: Amount | None = None
    """Model FLOPs utilisation, with causal attention."""
    tokens_per_second: Amount | None = None
    """Tokens per second over all ranks."""
    total_seconds: Amount | None = None
    """Time of the whole run, failures and saves not counted."""
    days: Amount | None = None
    """The same in days."""
    measured: Measured | None = None
    """The plan against what was measured."""
    assumptions: Annotated[list[Sentence], Field(max_length=8)] | None = None
    """What the figures rest on."""
    note: Sentence | None = None
    """What the plan cannot say, and why."""


class Failure(ApiModel):
    """One failure of the past."""

    time: Time
    """When it was seen."""
    attempt: Count
    """The attempt that failed."""
    reason: Word
    """Class of the failure."""
    message: Sentence
    """Evidence."""
    node: Annotated[str, Field(max_length=253)] | None = None
    """Node of the first failed pod."""
    exit_code: int | None = None
    """Exit code of the first failed container."""


class JobStatus(ApiModel):
    """What the operator observed and decided."""

    observed_generation: Count = 0
    """Generation of the spec that the status speaks of."""
    phase: (
        Literal[
            "Pending",
            "Queued",
            "Starting",
            "Running",
            "Restarting",
            "Suspended",
            "Succeeded",
            "Failed",
            "Rejected",
        ]
        | None
    ) = None
    """One word for the STATE column; derived from the conditions, never read back."""
    reason: Word | None = None
    """Reason of the condition that explains the phase; for the REASON column."""
    conditions: Annotated[list[Condition], Field(max_length=16), list_map("type")] | None = None
    """Conditions in the shape of metav1."""
    layout: Word | None = None
    """Parallel degrees: tp8·pp4·dp16."""
    nodes: Word | None = None
    """Ready nodes over wanted nodes: 12/16."""
    plan: PlanStatus | None = None
    """What the job needs and how long it takes; absent for a job that names no model."""
    estimated_start: Time | None = None
    """When the job is expected to start, while it waits and the queue can tell."""
    placement: PlacementStatus | None = None
    """Who sits where."""
    placement_summary: Word | None = None
    """The placement for the PLACEMENT column: 4 nodes · 2 leaf · 1 spine."""
    better_placement: BetterPlacement | None = None
    """Where the job would be better off; it moves when asked (annotation llmtrain.dev/replace)."""
    move: Move | None = None
    """A move that was asked for and not made yet."""
    attempt: Count = 0
    """Number of the current gang; it grows with every gang restart."""
    restarts: Count = 0
    """Gang restarts after failures (suspend and resume do not count)."""
    preemptions: Count = 0
    """Times that the job was stopped for one of higher priority."""
    failures: Annotated[list[Failure], Field(max_length=MAX_FAILURES)] | None = None
    """The last failures, newest last."""
    start_time: Time | None = None
    """When the job was first placed."""
    attempt_start_time: Time | None = None
    """When the current attempt was placed."""
    completion_time: Time | None = None
    """When the job finished."""
    progress: Progress | None = None
    """Where the training is."""
    progress_percent: Word | None = None
    """Progress for the PROGRESS column: 42%."""
