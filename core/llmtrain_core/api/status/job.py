"""Status of the `LLMTrainingJob` resource. Its size is bounded by groups, not by ranks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel, list_map
from llmtrain_core.api.defaults import (
    CHAT_TEMPLATE_LENGTH,
    MAX_DRAINED_NODES,
    MAX_FAILURES,
    MAX_NODES,
    MAX_RESOURCES,
    REASON_LENGTH,
)
from llmtrain_core.api.status.communication import CommunicationTuning
from llmtrain_core.api.status.fields import Count, LongText, NodeName, ShortText, Time
from llmtrain_core.api.status.network import NetworkStatus
from llmtrain_core.api.status.network_tuning import NetworkTuningStatus
from llmtrain_core.api.status.plan import PlanStatus

TrainerPhase = Literal[
    "preparing", "starting", "training", "evaluating", "saving", "finished", "failed"
]


class Condition(ApiModel):
    """Condition of the job (metav1.Condition)."""

    type: Annotated[str, Field(max_length=316)]
    """Type of the condition."""
    status: Literal["True", "False", "Unknown"]
    """Status of the condition: True, False or Unknown."""
    observed_generation: Count = 0
    """Generation of the spec that the condition was set for."""
    last_transition_time: Time
    """Time of the last change of the status."""
    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=REASON_LENGTH,
            pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        ),
    ]
    """Machine-readable reason for the last transition."""
    message: Annotated[str, Field(max_length=4096)]
    """Human-readable details: the field concerned and how to correct it."""


class PlacedBlock(ApiModel):
    """Consecutive nodes of the placement in one leaf domain."""

    path: Annotated[str, Field(max_length=1024)]
    """Domains from the top level down, without the node, for example spine-1/leaf-3."""
    nodes: Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=MAX_NODES)]
    """Node names in rank order."""


class LevelUse(ApiModel):
    """Usage of one topology level."""

    level: ShortText
    """Name of the level."""
    domains: Count
    """Number of domains used."""
    crossings: Annotated[dict[str, int], Field(max_length=8)] | None = None
    """Number of parallel groups that span several domains of this level, by kind of group."""


class PlacementStatus(ApiModel):
    """Placement of the ranks: the i-th node, in order of blocks, runs the i-th rank block."""

    attempt: Count
    """Attempt that the placement belongs to."""
    gpus_per_node: Annotated[int, Field(ge=1)]
    """Number of ranks per node."""
    blocks: Annotated[list[PlacedBlock], Field(max_length=MAX_NODES)]
    """Nodes in rank order."""
    levels: Annotated[list[LevelUse], Field(max_length=16), list_map("level")]
    """Usage of each level, from the top level down."""
    spares: Annotated[list[PlacedBlock], Field(max_length=1024)] | None = None
    """Spare nodes of the job, nearest first, without those that other jobs have got."""
    resources: Annotated[dict[str, Count], Field(max_length=MAX_RESOURCES)] | None = None
    """What each pod requests of its node, with what admission adds. CPU is in thousandths."""
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    """Priority of the job while it has these nodes."""
    priority_class_name: Annotated[str, Field(max_length=253)] | None = None
    """PriorityClass of the pods on these nodes."""
    deadline: Time | None = None
    """Time at which the job releases these nodes, even if its deadline was raised since."""
    explanation: LongText = ""
    """Summary of the placement."""


class BetterPlacement(ApiModel):
    """A placement on free nodes with less communication time."""

    attempt: Count
    """Attempt that the placement is compared with."""
    gain: Annotated[float, Field(ge=1)]
    """Ratio of the current communication time per step to that of this placement."""
    summary: ShortText
    """Summary of the placement, for example 4 nodes · 1 leaf."""


class Move(ApiModel):
    """A pending relocation: the user requested it, or nodes of the job are drained."""

    attempt: Count
    """Attempt to relocate."""
    after_checkpoint: Count
    """Step of the newest checkpoint at the time of the request. The job moves after a newer one."""
    nodes: Annotated[list[NodeName], Field(max_length=MAX_DRAINED_NODES)] | None = None
    """Nodes of the job that are drained: the first ones, if there are many."""
    deadline: Time | None = None
    """Time from which the pods may be evicted, for a drain."""


class CompletedPods(ApiModel):
    """Pods of an attempt that have succeeded, while others of it still run."""

    attempt: Count
    """Attempt of the pods."""
    indexes: Annotated[str, Field(max_length=8 * MAX_NODES, pattern=r"^[0-9,-]*$")]
    """Numbers of the pods, as completedIndexes of a batch/v1 Job: 0,2-5. They stay completed when
    their pods are deleted or rejected by a kubelet."""


class Collective(ApiModel):
    """Measurements of one kind of collective, per rank and sampled step."""

    group: Literal["tp", "cp", "dp", "ep", "edp", "rep", "rep-near", "rep-far", "pp", "world"]
    """Kind of parallel group."""
    op: Annotated[str, Field(max_length=64, pattern=r"^[a-z_]{1,64}$")]
    """Collective operation."""
    count: Count = 0
    """Number of calls per step."""
    bytes_per_step: Count = 0
    """Payload per step in bytes."""
    mean_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Mean duration of a call in seconds, including time waiting for other ranks."""


Collectives = Annotated[list[Collective], Field(max_length=32), list_map("group", "op")]


class Progress(ApiModel):
    """Training progress."""

    phase: TrainerPhase | None = None
    """Current phase of the trainer."""
    step: Count = 0
    """Number of completed optimizer steps."""
    total_steps: Count = 0
    """Total number of optimizer steps."""
    loss: float | None = None
    """Training loss of the last step, in nats per token."""
    tokens_per_second: float | None = None
    """Tokens per second over all ranks."""
    mfu: float | None = None
    """Model FLOPs utilization."""
    eta: Time | None = None
    """Estimated completion time of the last step."""
    last_checkpoint_step: Count | None = None
    """Step of the newest complete checkpoint."""
    restarts_in_place: Count | None = None
    """Number of in-place restarts in this attempt, which status.restarts does not count."""
    held_out_loss_before: float | None = None
    """Held-out loss before the first step, in nats per token."""
    held_out_loss_during: float | None = None
    """Held-out loss of the last evaluation between two steps, in nats per token."""
    held_out_loss_after: float | None = None
    """Held-out loss after the last step, in nats per token."""
    exact_match_before: float | None = None
    """Share of held-out examples with an exact match before the first step (objective sft)."""
    exact_match_during: float | None = None
    """Share of exact matches in the last evaluation between two steps (objective sft)."""
    exact_match_after: float | None = None
    """Share of held-out examples with an exact match after the last step (objective sft)."""
    network_fallback: Annotated[str, Field(max_length=512)] | None = None
    """Why the ranks use TCP although the job has RDMA devices."""
    chat_template: Annotated[str, Field(max_length=CHAT_TEMPLATE_LENGTH)] | None = None
    """Where the chat template of objective sft comes from: a preset, a field or a file."""
    collectives: Collectives | None = None
    """Measurements of collectives."""
    communication: CommunicationTuning | None = None
    """Communication settings that training.communication.autotune tried, and the fastest."""
    network_tuning: NetworkTuningStatus | None = None
    """NCCL variables that network.tuning tried, and the fastest."""


class Failure(ApiModel):
    """A failure of the job."""

    time: Time
    """Time when the failure was observed."""
    attempt: Count
    """Failed attempt."""
    reason: ShortText
    """Reason of the failure."""
    message: LongText
    """Details of the failure."""
    node: Annotated[str, Field(max_length=253)] | None = None
    """Node of the first failed pod."""
    exit_code: int | None = None
    """Exit code of the first failed container."""
    evidence: Literal["Job", "Node", "Start", "Xid", "Disruption"] | None = None
    """What the failure is evidence of. Node: the node was lost or rejected the pod. Start: a pod of
    this job did not start on the node. Xid: a pod of this job reports a GPU that cannot be used.
    Disruption: the cluster ended the pod. Job: the job itself.
    """


class RestartStatus(ApiModel):
    """The last restart of the ranks: by the operator, or by the launchers inside running pods."""

    time: Time
    """Time when the operator observed the cause."""
    attempt: Count
    """Attempt in which it happened."""
    action: Literal["RestartInPlace", "ReplaceNode", "RestartGang"]
    """RestartInPlace: inside the running pods. ReplaceNode: new pods, with a spare node for each
    failed one. RestartGang: new pods on the same nodes or on a new placement."""
    reason: ShortText
    """Reason of the failure that caused it."""
    message: LongText
    """Details of the failure."""
    node: Annotated[str, Field(max_length=253)] | None = None
    """Node of the first failed pod."""
    rank: Count | None = None
    """Rank that failed first, as the pod of rank 0 reports it."""
    restarts_in_place: Count | None = None
    """Number of in-place restarts in the attempt, this one included."""


class JobStatus(ApiModel):
    """Observed status of a training job."""

    observed_generation: Count = 0
    """Generation of the spec that the status was computed for."""
    revision: Count = 0
    """Number of the status. Each write of the operator has another one."""
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
    """Summary of the conditions, for the STATE column. Not used by the operator."""
    reason: ShortText | None = None
    """Reason of the condition that determines the phase, for the REASON column."""
    conditions: Annotated[list[Condition], Field(max_length=16), list_map("type")] | None = None
    """Conditions of the job."""
    layout: ShortText | None = None
    """Parallel degrees, for example tp8·pp4·dp16."""
    nodes: ShortText | None = None
    """Ready nodes over requested nodes (12/16). A succeeded job shows all, a failed one none."""
    ready_nodes: Count | None = None
    """Number of ready nodes: the replicas of the scale subresource."""
    selector: ShortText | None = None
    """Label selector of the pods, for the scale subresource."""
    plan: PlanStatus | None = None
    """Estimated resource needs and duration. Absent for jobs without a model."""
    estimated_start: Time | None = None
    """Estimated start time of a queued job, if it can be predicted."""
    placement: PlacementStatus | None = None
    """Placement of the ranks."""
    placement_summary: ShortText | None = None
    """Placement for the PLACEMENT column, for example 4 nodes · 2 leaf · 1 spine."""
    network: NetworkStatus | None = None
    """Network of the pods, decided with the placement."""
    better_placement: BetterPlacement | None = None
    """A better placement. To relocate the job, set the annotation llmtrain.dev/replace."""
    move: Move | None = None
    """A pending relocation, requested by the user or by a drain of a node."""
    attempt: Count = 0
    """Number of the current attempt. Each gang restart increments it."""
    restarts: Count = 0
    """Number of gang restarts after failures and disruptions. Suspend and resume do not count."""
    restarts_count_towards_max: Count | None = None
    """Number of gang restarts that count towards failurePolicy.maxRestarts: those after failures of
    the job itself since its newest checkpoint."""
    restart_checkpoint_step: Count | None = None
    """Step of the newest checkpoint at the last restart that counted towards the maximum. A newer
    checkpoint sets restartsCountTowardsMax to 0."""
    last_restart: RestartStatus | None = None
    """The last restart of the gang or of its ranks."""
    unstarted_attempts: Count | None = None
    """Consecutive attempts that lost their nodes before all of their pods had started. Each of them
    doubles the delay of the next attempt."""
    backoff_until: Time | None = None
    """Time at which the job queues again, after an attempt whose pods did not start."""
    preemptions: Count = 0
    """Number of times that the job was preempted by a job of higher priority."""
    failures: Annotated[list[Failure], Field(max_length=MAX_FAILURES)] | None = None
    """Most recent failures, oldest first."""
    start_time: Time | None = None
    """Time when the job was first placed."""
    attempt_start_time: Time | None = None
    """Time when the current attempt was placed."""
    completion_time: Time | None = None
    """Time when the job finished."""
    completed_pods: CompletedPods | None = None
    """Pods that have succeeded, while others of the attempt still run."""
    progress: Progress | None = None
    """Training progress."""
    progress_percent: ShortText | None = None
    """Progress for the PROGRESS column, for example 42%."""
