"""Compare one real GPU with the CPU, and the planned time and memory of a step with measurements.

This needs a GPU and no cluster. Communication between GPUs (NCCL, NVLink, the network) is not
measured.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from llmtrain_core.api import env
from llmtrain_core.api.env import TERMINATION_LOG
from llmtrain_core.plan.hardware import Accelerator, accelerator_called
from llmtrain_core.plan.time.predict import predict
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.validation.check import Job, check
from llmtrain_trainer.calibration.bench_group import LOOPBACK, TIMEOUT, free_port
from llmtrain_trainer.calibration.benchmark_model import random_tokens
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.data.prepare import PreparedData
from llmtrain_trainer.job_spec import from_spec
from llmtrain_trainer.parallel.document_kernel import MAX_RELATIVE_DIFFERENCE, ragged_difference
from llmtrain_trainer.training.trainer import Trainer
from llmtrain_trainer.worker.rendezvous import join
from tests.support.paths import ROOT

pytestmark = [pytest.mark.perf, pytest.mark.timeout(900)]

GIB = 1024**3
WARM, STEPS = 2, 6
"""Number of steps before the measurement, and of measured steps."""
TOLERANCES = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 5e-3}
"""Relative difference of losses and gradient norms, the same as between layouts."""

SMALL = {
    "layers": 2,
    "hiddenSize": 128,
    "heads": 4,
    "kvHeads": 2,
    "ffnSize": 352,
    "vocabSize": 512,
    "sequenceLength": 128,
}
BILLION = {
    "layers": 16,
    "hiddenSize": 2048,
    "heads": 32,
    "kvHeads": 8,
    "ffnSize": 8192,
    "vocabSize": 128256,
    "sequenceLength": 4096,
}
WIDE = {
    "layers": 6,
    "hiddenSize": 4096,
    "heads": 32,
    "kvHeads": 8,
    "ffnSize": 14336,
    "vocabSize": 32768,
    "sequenceLength": 8192,
}
GPT = {
    "layers": 24,
    "hiddenSize": 2048,
    "heads": 16,
    "ffnSize": 8192,
    "vocabSize": 50304,
    "sequenceLength": 2048,
    "norm": "layer",
    "activation": "gelu",
    "biases": "all",
    "positions": "learned",
}
EXPERTS = {
    "layers": 12,
    "hiddenSize": 1024,
    "heads": 16,
    "kvHeads": 8,
    "ffnSize": 2816,
    "vocabSize": 32000,
    "sequenceLength": 4096,
    "experts": 8,
    "expertsPerToken": 2,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A model and the settings of its steps."""

    name: str
    architecture: dict[str, Any]
    micro_batch: int = 1
    micro_batches: int = 1
    checkpointing: str = "none"
    compiled: bool = False
    precision: str = "bfloat16"
    attention: str = "packed"

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "model": {"architecture": self.architecture},
            "data": {
                "sources": [{"name": "none", "uri": "file:///none"}],
                "attention": self.attention,
            },
            "training": {
                "steps": 1000,
                "globalBatchSize": self.micro_batch * self.micro_batches,
                "microBatchSize": self.micro_batch,
                "precision": self.precision,
                "activationCheckpointing": self.checkpointing,
                "compile": self.compiled,
            },
            "parallelism": {"data": 1},
            "workers": {"gpusPerNode": 1, "image": "none"},
        }

    @property
    def run(self) -> RunConfig:
        return from_spec("gpu", self.spec)

    @property
    def setup(self) -> TrainingSetup:
        job = check("gpu", self.spec)
        assert isinstance(job, Job), job
        return TrainingSetup.of(job)


CASES = (
    Case("1.5B", BILLION, 1, 4),
    Case("1.5B", BILLION, 2, 2, checkpointing="selective"),
    Case("1.5B", BILLION, 4, 1, checkpointing="full"),
    Case("1.5B", BILLION, 1, 4, compiled=True),
    Case("8B's layers", WIDE, 1, 4),
    Case("8B's layers", WIDE, 1, 4, checkpointing="full"),
    Case("8B's layers", WIDE, 1, 4, compiled=True),
    Case("8B documents", WIDE, 1, 4, attention="document"),
    Case("GPT 1.3B", GPT, 4, 2),
    Case("GPT 1.3B", GPT, 8, 1, checkpointing="full"),
    Case("8 experts", EXPERTS, 2, 2),
)


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """A process group of one rank; NCCL is one of its backends."""
    if not torch.cuda.is_available():
        pytest.fail("this benchmark needs a GPU, and there is none")
    torch.cuda.set_device(0)
    address = (LOOPBACK, free_port())
    store = join(0, 1, LOOPBACK, address, TIMEOUT)
    yield
    torch.distributed.destroy_process_group()
    del store


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Random tokens; a document has 256 on average."""
    return replace(random_tokens(tmp_path_factory.mktemp("tokens"), 600_000), end=7)


@pytest.mark.parametrize("attention", ["packed", "document"])
@pytest.mark.parametrize("experts", [1, 4])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_losses_and_gradient_norms_equal_those_of_a_cpu(
    precision: str, experts: int, attention: str, data: PreparedData
) -> None:
    found, model = {}, {**SMALL, "experts": experts, "expertsPerToken": min(2, experts)}
    for device in ("cpu", "cuda"):
        run = Case("small", model, 2, 2, precision=precision, attention=attention).run
        trainer = Trainer(run, data, torch.device(device), lambda _: None)
        reports = [trainer.take_step() for _ in range(4)]
        found[device] = np.array([(report.loss, report.grad_norm) for report in reports])
    difference = np.abs(found["cuda"] / found["cpu"] - 1).max(axis=0)
    print(f"\n{precision}, {experts}, {attention}: loss {difference[0]:.1e}", end="")
    print(f", norm {difference[1]:.1e}")
    assert difference.max() <= TOLERANCES[precision]


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (32, 8), (8, 1)])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_the_kernel_of_variable_length_equals_a_mask(
    heads: int, key_heads: int, width: int
) -> None:
    worst = ragged_difference(heads, key_heads, width, torch.device("cuda"))
    print(f"\n{heads} heads, {key_heads} of keys, {width} wide: {worst:.1e}")
    assert worst <= MAX_RELATIVE_DIFFERENCE


def test_time_and_memory_of_a_step(data: PreparedData) -> None:
    hardware = _hardware()
    print(
        f"\n{torch.cuda.get_device_name()}, planned as {hardware.name}, torch {torch.__version__}"
    )
    print(
        f"{'':<38}{'SECONDS A STEP':>24}{'MFU':>6}{'GIB ALLOCATED':>24}{'RESERVED':>17}\n"
        f"{'MODEL':<13}{'BATCH':<6}{'CHECKPOINTS':<12}{'KERNELS':<9}"
        f"{'PLANNED':>7}{'MEASURED':>9}{'ERROR':>7}{'':>6}{'PLANNED':>8}{'MEASURED':>9}{'ERROR':>7}"
        f"{'PLANNED':>8}{'MEASURED':>9}"
    )
    for case in CASES:
        print(_measured_row(case, hardware, data), flush=True)


def _hardware() -> Accelerator:
    name = torch.cuda.get_device_name()
    hardware = accelerator_called(name)
    assert hardware is not None, f"the catalogue has no {name}"
    return hardware


def _measured_row(case: Case, hardware: Accelerator, data: PreparedData) -> str:
    setup = case.setup
    planned = predict(setup, hardware, setup.tokens_per_step)
    head = (
        f"{case.name:<13}{case.micro_batches}x{case.micro_batch:<4}{case.checkpointing:<12}"
        f"{setup.kernels:<9}"
    )
    try:
        seconds, allocated, reserved = _measure(case, data)
    except Exception as error:  # the other cases are still measured
        return f"{head}{str(error).splitlines()[0]:.70}"
    least, whole = planned.memory.least / GIB, planned.memory.total / GIB
    rate = setup.tokens_per_step / seconds
    mfu = planned.mfu * planned.time.seconds / seconds
    return (
        f"{head}{planned.time.seconds:>7.3f}{seconds:>9.3f}"
        f"{planned.time.seconds / seconds - 1:>+7.1%}{mfu:>6.1%}{least:>8.2f}{allocated:>9.2f}"
        f"{least / allocated - 1:>+7.1%}{whole:>8.2f}{reserved:>9.2f}   {rate:,.0f} tokens/s"
    )


def _measure(case: Case, data: PreparedData) -> tuple[float, float, float]:
    """Return the seconds of a step, and the peak memory of tensors and of the allocator."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(case.run, data, torch.device("cuda"), lambda _: None)
    seconds = [trainer.take_step().seconds for _ in range(WARM + STEPS)][WARM:]
    allocated = torch.cuda.max_memory_allocated() / GIB
    reserved = torch.cuda.max_memory_reserved() / GIB
    del trainer
    return median(seconds), allocated, reserved


def test_a_job_from_text_to_weights(tmp_path: Path) -> None:
    """Run the launcher of a pod with one rank on the GPU, and scrape its metrics meanwhile."""
    page, status, port = "", {}, free_port()
    (tmp_path / "job.json").write_text(
        json.dumps({"metadata": {"name": "gpu"}, "spec": _job_spec(tmp_path)})
    )
    environment = {
        env.JOB_FILE: str(tmp_path / "job.json"),
        env.RANKS: "0",
        env.WORLD_SIZE: "1",
        env.POD_IP: LOOPBACK,
        env.PORT: str(port),
        env.NODE_NAME: "localhost",
        env.MASTER_ADDR: LOOPBACK,
        env.MASTER_PORT: str(free_port()),
        env.WORK_DIR: str(tmp_path),
        TERMINATION_LOG: str(tmp_path / "end.json"),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "llmtrain_trainer.launch"],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
        )
        while process.poll() is None:
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                status = json.loads(_get(port, "status"))
                page = _get(port, "metrics")
    assert process.returncode == 0, (tmp_path / "log").read_text()
    print(f"\n{json.dumps(status)}\n{(tmp_path / 'end.json').read_text()}")
    shown = [line for line in page.splitlines() if line.startswith("llmtrain_")]
    print("\n".join(line for line in shown if "_bucket" not in line))
    assert 'source="nvml"' in page


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/{path}", timeout=5) as answer:
        return str(answer.read().decode())


def _job_spec(folder: Path) -> dict[str, Any]:
    text = folder / "text"
    text.mkdir()
    for number, path in enumerate(sorted((ROOT / "docs").rglob("*.md"))):
        (text / f"{number}.txt").write_text(re.sub(r"\W+", " ", path.read_text()))
    return {
        "model": {
            "architecture": {
                **SMALL,
                "layers": 8,
                "hiddenSize": 512,
                "heads": 8,
                "ffnSize": 1408,
                "vocabSize": 2048,
            }
        },
        "data": {"sources": [{"name": "docs", "uri": text.as_uri()}], "heldOutFraction": 0.1},
        "training": {
            "steps": 400,
            "globalBatchSize": 32,
            "microBatchSize": 32,
            "precision": "bfloat16",
        },
        "parallelism": {"data": 1},
        "workers": {"gpusPerNode": 1, "image": "none"},
        "checkpoint": {
            "uri": (folder / "checkpoints").as_uri(),
            "everySteps": 100,
            "async": True,
            "exportHuggingFace": (folder / "export").as_uri(),
        },
    }
