"""Small models whose steps are timed, as input for the plan and for the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llmtrain_core.api.job import Architecture
from llmtrain_core.layout import Layout
from llmtrain_core.plan.cpu.cost_model import WorkAmounts, add_work, rank_work
from llmtrain_core.plan.model.model_shape import shape_of
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_trainer.calibration.bench_group import BenchmarkGroup, Task
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.data.prepare import HELD_OUT, TRAIN, PreparedData
from llmtrain_trainer.data.shards import write_shards
from llmtrain_trainer.job_spec import from_spec
from llmtrain_trainer.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class BenchmarkModel:
    """A model and a layout whose steps are timed."""

    layers: int
    hidden: int
    vocab: int
    length: int
    layout: Layout
    micro_batches: int
    micro_batch: int = 1

    @property
    def architecture(self) -> Architecture:
        """A decoder with four heads and two KV heads, in the proportions of Llama."""
        return Architecture(
            layers=self.layers,
            hidden_size=self.hidden,
            heads=4,
            kv_heads=2,
            ffn_size=self.hidden * 11 // 4,
            vocab_size=self.vocab,
            sequence_length=self.length,
        )

    @property
    def setup(self) -> TrainingSetup:
        """Input of the plan's formulas."""
        batch = self.micro_batches * self.micro_batch * self.layout.data
        return TrainingSetup(
            shape_of(self.architecture), self.layout, batch, self.micro_batch, precision="float32"
        )

    @property
    def run(self) -> RunConfig:
        """Configuration of the trainer."""
        setup, layout = self.setup, self.layout
        wire = self.architecture.model_dump(by_alias=True, exclude_none=True)
        return from_spec(
            "calibration",
            {
                "model": {"architecture": wire},
                "data": {"sources": [{"name": "none", "uri": "file:///none"}]},
                "training": {
                    "steps": 1000,
                    "globalBatchSize": setup.global_batch,
                    "microBatchSize": setup.micro_batch,
                    "precision": setup.precision,
                },
                "parallelism": {
                    "tensor": layout.tensor,
                    "pipeline": layout.pipeline,
                    "data": layout.data,
                    "pipelineSchedule": "1F1B",
                },
                "workers": {"gpusPerNode": layout.world_size, "image": "none"},
            },
        )

    @property
    def work(self) -> WorkAmounts:
        """The work of all ranks in a step."""
        per_stage = self.layout.world_size // self.layout.pipeline
        stages = [rank_work(self.setup, rank) for rank in range(self.layout.pipeline)]
        return {kind: per_stage * amount for kind, amount in add_work(*stages).items()}


def benchmark_steps(
    models: Sequence[BenchmarkModel], data: PreparedData, copies: int = 1
) -> BenchmarkGroup:
    """Return a group whose tasks are steps of the models, which all need as many ranks."""
    (size,) = {model.layout.world_size for model in models}
    device = torch.device("cpu")

    def build() -> list[Task]:
        return [Trainer(model.run, data, device, lambda _: None).take_step for model in models]

    return BenchmarkGroup(size, build, copies)


def random_tokens(folder: Path, count: int = 50_000) -> PreparedData:
    """Write random training data with 256 different tokens, which every vocabulary has."""
    tokens = np.random.default_rng(0).integers(0, 256, count).astype(np.uint32)
    for split in (TRAIN, HELD_OUT):
        write_shards(folder, split, [tokens], 256)
    return PreparedData(folder, count, count, "random")
