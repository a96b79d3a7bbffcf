"""Convert a plan to JSON: camelCase keys; numbers in seconds, bytes and ratios."""

from __future__ import annotations

from typing import Any

from llmtrain_core.forecast.plan import Plan
from llmtrain_core.plan.network.communication import GROUPS, bytes_per_step, wire_bytes
from llmtrain_core.plan.search.layouts import PlanOption
from llmtrain_core.plan.time.predict import Outline, Prediction


def outline_to_wire(outline: Outline) -> dict[str, Any]:
    """Return the JSON of the part of a plan that does not depend on the hardware."""
    return {
        "parameters": outline.parameters,
        "trainableParameters": outline.learning,
        "activeParameters": outline.active_parameters,
        "flopsPerToken": {
            "fullAttention": outline.flops_per_token("full-attention"),
            "causalAttention": outline.flops_per_token("causal-attention"),
        },
        "totalFlops": outline.total_flops,
        "memory": {"perGpuBytes": dict(outline.memory.parts), "fits": outline.memory.fits},
        "bubble": outline.bubble,
        "gpus": outline.gpus,
    }


def prediction_to_wire(prediction: Prediction) -> dict[str, Any]:
    """Return the JSON of a prediction."""
    time = prediction.time
    return {
        **outline_to_wire(prediction),
        "step": {
            "seconds": time.seconds,
            "computeSeconds": time.compute,
            "exposed": dict(time.exposed),
            "collectives": dict(prediction.collectives),
        },
        "mfu": prediction.mfu,
        "tokensPerSecond": prediction.tokens_per_second,
        "days": prediction.days,
        "assumptions": list(prediction.assumptions),
    }


def plan_to_wire(plan: Plan) -> dict[str, Any]:
    """Return the JSON of `llmtrain plan`. Null in `cost`, or for an interval, means never."""
    stored, cost, goodput = plan.storage, plan.cost, plan.goodput
    no_failures = goodput.failures_per_day == 0
    return {
        **prediction_to_wire(plan),
        "hardware": plan.hardware.name,
        "recipe": option_to_wire(PlanOption(plan.setup, plan.memory, plan.time)),
        "communication": _volumes(plan),
        "storage": {
            "tokensBytes": stored.tokens,
            "checkpointBytes": stored.checkpoint,
            "checkpointsBytes": stored.checkpoints,
            "exportBytes": stored.export,
            "checkpointIntervalSeconds": None if no_failures else goodput.checkpoint_seconds,
        },
        "cost": {
            "gpuHours": cost and cost.gpu_hours,
            "energyKilowattHours": cost and cost.kilowatt_hours,
            "dollars": cost and cost.dollars,
            "goodput": goodput.ratio,
            "failuresPerDay": goodput.failures_per_day,
            "daysWithFailures": plan.days_with_failures,
        },
        "alternatives": [option_to_wire(c) for c in plan.alternatives],
    }


def _volumes(plan: Plan) -> dict[str, Any]:
    volumes = plan.communication
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
                "wireBytesPerStep": wire_bytes(plan.setup, volumes, group),
                "operations": operations,
            }
    return found


def option_to_wire(option: PlanOption) -> dict[str, Any]:
    """Return the JSON of a plan option: the fields of the job that it sets, and its estimates."""
    setup, layout = option.setup, option.setup.layout
    return {
        "parallelism": {
            "tensor": layout.tensor,
            "pipeline": layout.pipeline,
            "context": layout.context,
            "data": layout.data,
            "replicate": layout.replicate,
            "expert": layout.expert,
            "pipelineSchedule": setup.schedule,
            "virtualStages": setup.chunks,
        },
        "globalBatchSize": setup.global_batch,
        "microBatchSize": setup.micro_batch,
        "activationCheckpointing": setup.checkpointing,
        "precision": setup.precision,
        "perGpuBytes": option.memory.total,
        "stepSeconds": option.time.seconds,
        "tokensPerSecond": option.tokens_per_second,
    }
