"""A plan as JSON: camelCase keys, plain numbers in seconds, bytes and ratios."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtrain_core.plan.communication import GROUPS, Volumes, bytes_per_step

if TYPE_CHECKING:
    from llmtrain_core.plan.plan import Plan
    from llmtrain_core.plan.search import Candidate


def plan_to_wire(plan: Plan) -> dict[str, Any]:
    """Return the JSON of a plan."""
    time, stored, cost = plan.time, plan.storage, plan.cost
    return {
        "parameters": plan.parameters,
        "flopsPerToken": {
            "fullAttention": plan.flops_per_token("full-attention"),
            "causalAttention": plan.flops_per_token("causal-attention"),
        },
        "totalFlops": plan.total_flops,
        "memory": {"perGpuBytes": dict(plan.memory.parts), "fits": plan.memory.fits},
        "communication": _volumes(plan.communication),
        "bubble": plan.bubble,
        "step": {
            "seconds": time.seconds,
            "computeSeconds": time.compute,
            "exposed": dict(time.exposed),
        },
        "mfu": plan.mfu,
        "tokensPerSecond": plan.tokens_per_second,
        "days": plan.days,
        "gpus": plan.gpus,
        "storage": {
            "tokensBytes": stored.tokens,
            "checkpointBytes": stored.checkpoint,
            "checkpointsBytes": stored.checkpoints,
            "exportBytes": stored.export,
            "checkpointIntervalSeconds": plan.goodput.checkpoint_seconds,
        },
        "cost": {
            "gpuHours": cost.gpu_hours,
            "energyKilowattHours": cost.kilowatt_hours,
            "dollars": cost.dollars,
            "goodput": plan.goodput.ratio,
            "failuresPerDay": plan.goodput.failures_per_day,
            "daysWithFailures": plan.days / plan.goodput.ratio if plan.goodput.ratio else None,
        },
        "alternatives": [candidate_to_wire(c) for c in plan.alternatives],
        "assumptions": list(plan.assumptions),
    }


def _volumes(volumes: Volumes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group in GROUPS:
        operations = {
            operation: {"count": calls.count, "bytes": calls.nbytes}
            for (kind, operation), calls in sorted(volumes.items())
            if kind == group
        }
        if operations:
            found[group] = {
                "bytesPerStep": bytes_per_step(volumes, group),
                "operations": operations,
            }
    return found


def candidate_to_wire(candidate: Candidate) -> dict[str, Any]:
    """Return the JSON of one alternative: the fields of a job that differ, and what it would do."""
    recipe, layout = candidate.recipe, candidate.recipe.layout
    return {
        "parallelism": {
            "tensor": layout.tensor, "pipeline": layout.pipeline, "context": layout.context,
            "data": layout.data, "replicate": layout.replicate,
            "pipelineSchedule": recipe.schedule, "virtualStages": recipe.chunks,
        },
        "globalBatchSize": recipe.global_batch,
        "microBatchSize": recipe.micro_batch,
        "activationCheckpointing": recipe.checkpointing,
        "perGpuBytes": candidate.memory.total,
        "stepSeconds": candidate.time.seconds,
        "tokensPerSecond": candidate.tokens_per_second,
    }  # fmt: skip
