"""A job that is too large is told the nearest one that is not; and that one really fits."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.memory.node_filter import min_gpu_memory
from llmtrain_core.plan.memory.training_memory import format_bytes, memory
from llmtrain_core.plan.search.fix_hint import nearest_fit, too_large_message
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.validation.check import Job, check

pytestmark = pytest.mark.unit


def _job(preset: str, parallelism: dict[str, int], per_node: int = 8, **training: Any) -> Job:
    spec = {
        "model": {"preset": preset},
        "data": {"sources": [{"name": "text", "uri": "file:///data"}]},
        "training": {"steps": 1000, "globalBatchSize": 1024, "microBatchSize": 1, **training},
        "parallelism": parallelism,
        "workers": {"gpusPerNode": per_node, "image": "example.com/trainer:1"},
    }
    job = check("large", spec)
    assert isinstance(job, Job), job
    return job


CASES = [
    # job, GPU, where, what is asked for
    (
        _job("llama3.1-405b", {"tensor": 8, "pipeline": 16, "data": 4}),
        "H100",
        "spec.training.microBatchSize",
        "set training.activationCheckpointing to full",
    ),
    (
        _job("llama-7b", {"data": 8}, microBatchSize=16),
        "H100",
        "spec.training.microBatchSize",
        "set training.microBatchSize to 2",
    ),
    (
        _job("llama3-70b", {"tensor": 2, "data": 2}, 2, activationCheckpointing="full"),
        "H100",
        "spec.parallelism",
        "parallelism.pipeline to 8, workers.nodes for 32 GPUs",
    ),
    (
        _job("llama3-8b", {"data": 8}, precision="float32", activationCheckpointing="full"),
        "A100-40",
        "spec.parallelism",
        "set parallelism.tensor to ",
    ),
    (
        _job("llama3.1-405b", {"data": 1}, 1, globalBatchSize=64),
        "H100",
        "spec.parallelism",
        "set workers.gpusPerNode to 8, ",
    ),
    (
        _job("llama3.1-405b", {"data": 8}, 8, globalBatchSize=8),
        "V100-16",
        "spec.training.microBatchSize",
        "use larger ones",
    ),
]


@pytest.mark.parametrize(("job", "gpu", "field", "remedy"), CASES)
def test_the_message_has_field_amounts_and_hint(
    job: Job, gpu: str, field: str, remedy: str
) -> None:
    capacity = int(CATALOGUE[gpu].memory.value)
    needed = memory(TrainingSetup.of(job), capacity)
    assert needed.least > capacity
    said = too_large_message(job, needed, gpu, capacity)
    assert said.startswith(f"{field}: {job.layout} needs at least {format_bytes(needed.least)}")
    assert f"{gpu} has {format_bytes(capacity)}" in said
    largest = max(
        (part for part in needed.parts if part not in ("runtime", "fragmentation")),
        key=lambda part: needed.parts[part],
    )
    assert f"the largest part is {largest}, {format_bytes(needed.parts[largest])}" in said
    assert remedy in said
    assert len(said) < 700, "room for what the operator adds"


@pytest.mark.parametrize(("job", "gpu", "field", "remedy"), CASES[:-2])
def test_the_hint_fits(job: Job, gpu: str, field: str, remedy: str) -> None:
    capacity = int(CATALOGUE[gpu].memory.value)
    setup = TrainingSetup.of(job)
    found = nearest_fit(job, setup, capacity)
    assert found is not None
    assert memory(found, capacity).fits
    assert found.layout.world_size >= setup.layout.world_size
    assert found.global_batch == setup.global_batch, "another batch would be another run"


def test_a_job_that_fits_needs_no_change() -> None:
    job = _job("tiny", {"data": 8})
    setup = TrainingSetup.of(job)
    assert nearest_fit(job, setup, 80 * 1024**3) == setup
    assert memory(setup).least <= 80 * 1024**3


def test_margins_alone_are_no_proof() -> None:
    """A job is refused for what it needs without the margins, not for what it needs with them."""
    job = _job("llama3-8b", {"data": 8})
    needed = memory(TrainingSetup.of(job))
    assert min_gpu_memory(job) == needed.least
    assert needed.least < needed.total
