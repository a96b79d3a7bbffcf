"""`LLMTrainingJob`: the status the operator writes. Bounded: O(groups), never O(ranks)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel, list_map

Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
Word = Annotated[str, Field(max_length=128)]
Sentence = Annotated[str, Field(max_length=1024)]
Count = Annotated[int, Field(ge=0, le=2**53)]
"""What JSON numbers carry exactly."""
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
        Field(min_length=1, max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"),
    ]
    """Why, in one word."""
    message: Annotated[str, Field(max_length=4096)]
    """Why, in a sentence, with the field and the remedy."""


class PlacedBlock(ApiModel):
    """A run of consecutive nodes of the placement inside one nearest domain."""

    path: Annotated[str, Field(max_length=1024)]
    """Domains from far to near, without the node: spine-1/leaf-3."""
    nodes: Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=65536)]
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
    blocks: Annotated[list[PlacedBlock], Field(max_length=65536)]
    """Nodes in order of rank."""
    levels: Annotated[list[LevelUse], Field(max_length=16), list_map("level")]
    """Use of each level, far to near."""
    explanation: Sentence = ""
    """The placement in a sentence."""


class Collective(ApiModel):
    """Measured cost of one kind of collective, per rank and sampled step."""

    group: Literal["tp", "cp", "dp", "rep", "pp", "world"]
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
    held_out_loss_before: float | None = None
    """Held-out loss before the first step, in nats per token."""
    held_out_loss_after: float | None = None
    """Held-out loss after the last step, in nats per token."""
    collectives: (
        Annotated[
            list[Collective],
            Field(max_length=32),
            list_map("group", "op"),
        ]
        | None
    ) = None
    """Measured collectives."""


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
    phase: Literal[
        "Pending", "Queued", "Starting", "Running", "Restarting", "Suspended", "Succeeded",
        "Failed", "Rejected",
    ] | None = None  # fmt: skip
    """One word for the STATE column; derived from the conditions, never read back."""
    reason: Word | None = None
    """Reason of the condition that explains the phase; for the REASON column."""
    conditions: Annotated[list[Condition], Field(max_length=16), list_map("type")] | None = None
    """Conditions in the shape of metav1."""
    layout: Word | None = None
    """Parallel degrees: tp8·pp4·dp16."""
    nodes: Word | None = None
    """Ready nodes over wanted nodes: 12/16."""
    placement: PlacementStatus | None = None
    """Who sits where."""
    placement_summary: Word | None = None
    """The placement for the PLACEMENT column: 4 nodes · 2 leaf · 1 spine."""
    attempt: Count = 0
    """Number of the current gang; it grows with every gang restart."""
    restarts: Count = 0
    """Gang restarts after failures (suspend and resume do not count)."""
    failures: Annotated[list[Failure], Field(max_length=10)] | None = None
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
