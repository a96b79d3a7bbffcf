"""Tokens per second of fine-tuning with packed examples, beside one example per sequence.

The examples are those of the demonstration: WordNet's definitions, with the model of
`examples/definitions-lora.yaml` and all of its weights. CPU seconds of one rank are compared, not
wall time, which any other load stretches. Rounds of both alternate.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.trainer.ranks import run_world

pytestmark = [pytest.mark.perf, pytest.mark.timeout(1800)]

WARM, ROUNDS, STEPS = 1, 3, 2
ARCHITECTURE = {
    "layers": 4,
    "hiddenSize": 128,
    "heads": 4,
    "kvHeads": 2,
    "ffnSize": 352,
    "vocabSize": 2048,
}


@pytest.mark.parametrize("length", [64, 256])
def test_packed_examples_per_cpu_second(tmp_path: Path, length: int) -> None:
    tool = [sys.executable, str(ROOT / "hack" / "definitions.py")]
    folder = subprocess.run(tool, capture_output=True, text=True, check=True).stdout.strip()
    (rates, shares) = run_world(1, lambda _: _rates(Path(folder), tmp_path, length), 1500)[0]
    gain = rates["packed"] / rates["padded"]
    print(f"\nsequences of {length} tokens, real tokens per CPU second of a rank:")
    for way in ("padded", "packed"):
        print(f"  {way}: {rates[way]:8,.0f}   real tokens {shares[way]:5.1%} of all")
    print(f"  gain: {gain:.2f}")
    assert shares["packed"] > 0.95 > shares["padded"]
    assert gain > 1


def _rates(folder: Path, work: Path, length: int) -> tuple[dict[str, float], dict[str, float]]:
    import torch

    from llmtrain_trainer.data.prepare import prepare
    from llmtrain_trainer.job_spec import from_spec
    from llmtrain_trainer.training.trainer import Trainer

    trainers: dict[str, Any] = {}
    for way in ("padded", "packed"):
        run = from_spec("bench", _spec(folder, length, way == "packed"))
        data = prepare(run.data, run.sequence, work)
        trainers[way] = Trainer(run, data, torch.device("cpu"), lambda report: None)
    seconds = dict.fromkeys(trainers, 0.0)
    tokens = dict.fromkeys(trainers, 0)
    for _ in range(WARM):
        for trainer in trainers.values():
            trainer.take_step()
    for _ in range(ROUNDS):
        for way, trainer in trainers.items():
            begin = time.process_time()
            tokens[way] += sum(_tokens(trainer.take_step) for _ in range(STEPS))
            seconds[way] += time.process_time() - begin
    whole = ROUNDS * STEPS * trainers["packed"].run.tokens_per_step
    return (
        {way: tokens[way] / seconds[way] for way in trainers},
        {way: tokens[way] / whole for way in trainers},
    )


def _tokens(take_step: Callable[[], Any]) -> int:
    return int(take_step().tokens)


def _spec(folder: Path, length: int, packed: bool) -> dict[str, Any]:
    batch = 4096 // length
    return {
        "model": {"architecture": {**ARCHITECTURE, "sequenceLength": length}},
        "data": {
            "objective": "sft",
            "packing": packed,
            "chat": {"preset": "plain"},
            "sources": [{"name": "pairs", "uri": f"file://{folder}/pairs.jsonl"}],
        },
        "training": {
            "steps": 100,
            "globalBatchSize": batch,
            "microBatchSize": batch // 4,
            "precision": "float32",
        },
        "parallelism": {"data": 1},
        "workers": {"gpusPerNode": 1, "image": "test"},
    }
