"""Specifications of tiny jobs, and their data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ARCHITECTURE = {
    "layers": 2,
    "hiddenSize": 32,
    "heads": 4,
    "kvHeads": 2,
    "ffnSize": 48,
    "vocabSize": 320,
    "sequenceLength": 16,
}
"""A model that is tiny in every dimension, all of them different."""


def job_spec(
    *,
    tensor: int = 1,
    pipeline: int = 1,
    data: int = 1,
    context: int = 1,
    replicate: int = 1,
    expert: int = 1,
    pipelineSchedule: str = "1F1B",  # noqa: N803 - as in the manifest
    virtualStages: int = 1,  # noqa: N803
    precision: str = "float64",
    uri: str = "file:///nowhere",
    checkpoint: dict[str, Any] | None = None,
    gpus_per_node: int | None = None,
    architecture: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    init_from: str | None = None,
    restarts: int = 3,
) -> dict[str, Any]:
    """Return a job of a tiny model with enough layers for pipelines."""
    spec: dict[str, Any] = {
        "model": {"architecture": {**ARCHITECTURE, "layers": 4, **(architecture or {})}},
        "data": {"sources": [{"name": "text", "uri": uri}], "heldOutFraction": 0.2},
        "training": {
            "steps": 6,
            "globalBatchSize": 8,
            "microBatchSize": 2,
            "precision": precision,
            "optimizer": {"learningRate": 0.01},
            "schedule": {"warmupSteps": 2},
            "seed": 7,
            **(training or {}),
        },
        "parallelism": {
            "tensor": tensor,
            "pipeline": pipeline,
            "data": data,
            "context": context,
            "replicate": replicate,
            "expert": expert,
            "pipelineSchedule": pipelineSchedule,
            "virtualStages": virtualStages,
        },
        "workers": {
            "gpusPerNode": gpus_per_node or tensor * pipeline * data * context * replicate,
            "image": "test",
        },
        "failurePolicy": {"maxRestartsInPlace": restarts},
    }
    if checkpoint:
        spec["checkpoint"] = checkpoint
    if init_from:
        spec["model"]["initFrom"] = init_from
    return spec


def random_shards(folder: Path, held_out_tokens: int = 700) -> Any:
    """Write prepared data of random tokens."""
    import numpy as np

    from llmtrain_trainer.data.prepare import PreparedData
    from llmtrain_trainer.data.shards import write_shards

    random = np.random.default_rng(0)
    train = random.integers(0, 320, 4000).astype(np.uint32)
    held_out = random.integers(0, 320, held_out_tokens).astype(np.uint32)
    write_shards(folder, "train", [train], 320)
    write_shards(folder, "held-out", [held_out], 320)
    return PreparedData(folder, len(train), len(held_out), "digest")
