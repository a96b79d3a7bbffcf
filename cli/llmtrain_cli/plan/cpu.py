"""`llmtrain plan -f JOB --calibration FILE`: the time of a job on a calibrated CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmtrain_cli.io.files import read_document, read_job
from llmtrain_core.plan.cpu.cost_model import CpuCostModel, CpuStepTime, cpu_step_time
from llmtrain_core.plan.training_setup import TrainingSetup


def cpu_plan(job_path: str, calibration_path: str) -> tuple[dict[str, Any], str]:
    """Return the plan as JSON and as text. Raises PlanError if an operation is not calibrated."""
    cost_model = CpuCostModel.from_wire(read_document(calibration_path))
    job = read_job(job_path)
    setup = TrainingSetup.of(job)
    step = cpu_step_time(setup, cost_model)
    wire = _wire(setup, cost_model, step, job.total_steps)
    return wire, "\n".join(_lines(wire, setup))


def _wire(
    setup: TrainingSetup, cost_model: CpuCostModel, step: CpuStepTime, steps: int
) -> dict[str, Any]:
    return {
        "cores": cost_model.cores,
        "ranks": setup.layout.world_size,
        "step": {
            "seconds": step.wall_seconds,
            "cpuSeconds": step.cpu_seconds,
            "cpuSecondsPerRank": list(step.cpu),
        },
        "tokensPerSecond": setup.tokens_per_step / step.wall_seconds,
        "steps": steps,
        "seconds": steps * step.wall_seconds,
    }


def _lines(wire: dict[str, Any], setup: TrainingSetup) -> Iterator[str]:
    step = wire["step"]
    each = ", ".join(f"{seconds:.3f}" for seconds in step["cpuSecondsPerRank"])
    yield f"{wire['ranks']} ranks as {setup.layout} on {wire['cores']} cores, nothing else running"
    yield f"STEP  {step['seconds']:.3f} s, {wire['tokensPerSecond']:,.0f} tokens/s"
    yield f"      {step['cpuSeconds']:.3f} CPU seconds; a rank of each stage: {each}"
    yield f"TIME  {wire['seconds']:,.0f} s for {wire['steps']:,} steps"
