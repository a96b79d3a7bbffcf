"""Limit the search space to what validation accepts."""

from __future__ import annotations

from typing import Any, get_args

from llmtrain_core.api.job import JobSpec
from llmtrain_core.pipeline_schedules import SCHEDULES, Schedule
from llmtrain_core.plan.search.layouts import SearchSpace
from llmtrain_core.plan.training_setup import Checkpointing, TrainingSetup
from llmtrain_core.validation.check import Job, check, not_yet_supported


def space_of(spec: JobSpec) -> SearchSpace:
    """Return the search space of a job: all values that this release supports."""
    before = {problem.field for problem in not_yet_supported(spec)}

    def runs(section: str, **changes: Any) -> bool:
        part = getattr(spec, section)
        if part is None:
            return True
        changed = spec.model_copy(update={section: part.model_copy(update=changes)})
        return {problem.field for problem in not_yet_supported(changed)} <= before

    checkpointings: tuple[Checkpointing, ...] = get_args(Checkpointing)
    chunks = runs("parallelism", virtual_stages=2)
    schedules: list[Schedule] = [
        schedule
        for schedule in SCHEDULES
        if runs("parallelism", pipeline_schedule=schedule)
        and (chunks or schedule in {"GPipe", "1F1B"})
    ]
    return SearchSpace(
        checkpointings=tuple(
            kind for kind in checkpointings if runs("training", activation_checkpointing=kind)
        ),
        schedules=tuple(schedules),
        context=runs("parallelism", context=2),
        replicate=runs("parallelism", replicate=2),
    )


def accepts(job: Job, setup: TrainingSetup) -> bool:
    """Return True if validation accepts the job with the setup's values."""
    spec, layout = job.spec.to_wire(), setup.layout
    spec["parallelism"] = {
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "context": layout.context,
        "data": layout.data,
        "replicate": layout.replicate,
        "expert": layout.expert,
        "pipelineSchedule": setup.schedule,
        "virtualStages": setup.chunks,
    }
    spec["workers"].pop("nodes", None)
    spec["training"] |= {
        "globalBatchSize": setup.global_batch,
        "microBatchSize": setup.micro_batch,
        "activationCheckpointing": setup.checkpointing,
        "precision": setup.precision,
    }
    return isinstance(check(job.name, spec), Job)
