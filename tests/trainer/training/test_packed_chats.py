"""Conversations in the format of a model are packed, evaluated and exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.data.prepare import prepare
from llmtrain_trainer.data.tokenizer import train_bpe
from llmtrain_trainer.job_spec import from_spec
from tests.support.trainer.chat_models import SPECIAL, TEMPLATE
from tests.support.trainer.jobs import job_spec

pytestmark = pytest.mark.torch

LENGTH = 48
HELD_OUT = 5
"""Conversations that are held out. A batch has another number of sequences."""


@dataclass(frozen=True)
class Seen:
    """Results of the first step, which has every example once, and of the evaluation after it."""

    loss: float
    norm: float
    tokens: int
    sequences: int
    held_out: Any


def _conversations(folder: Path) -> str:
    """Write conversations of one or two turns, and return the address of the file."""
    turns = [
        [
            {"role": "user", "content": f"say {number}" + ", and be brief" * (number % 3)},
            {"role": "assistant", "content": "hi " * (number % 4 + 1)},
        ]
        * (number % 2 + 1)
        for number in range(20)
    ]
    path = folder / "talk.jsonl"
    path.write_text("\n".join(json.dumps({"messages": each}) for each in turns))
    return path.as_uri()


def _tokenizer(folder: Path) -> str:
    """Write the tokenizer of a chat model, and return its address."""
    text = ["say hi, and be brief"] * 9
    train_bpe(text, 310, SPECIAL).save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|begin|>", "eos_token": "<|finish|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return (folder / "tokenizer.json").as_uri()


def _spec(folder: Path, packing: bool, batch: int) -> dict[str, Any]:
    spec = job_spec(
        architecture={
            "layers": 1,
            "sequenceLength": LENGTH,
            "ropeScaling": {"factor": 8, "originalSequenceLength": 16},
        },
        training={"steps": 1, "globalBatchSize": batch, "microBatchSize": 1},
        checkpoint={
            "uri": (folder / f"run-{packing}").as_uri(),
            "everySteps": 1,
            "exportHuggingFace": (folder / f"model-{packing}").as_uri(),
        },
    )
    spec["data"] = {
        "objective": "sft",
        "packing": packing,
        "heldOutFraction": HELD_OUT / 20,
        "sources": [{"name": "talk", "uri": _conversations(folder)}],
        "tokenizer": {"uri": _tokenizer(folder)},
    }
    return spec


def _learn(run: Any, data: Any) -> Seen:
    import torch

    from llmtrain_trainer.training.trainer import Trainer

    sent: list[Any] = []
    trainer = Trainer(run, data, torch.device("cpu"), sent.append)
    trainer.train()
    (step,) = [each for each in sent if hasattr(each, "grad_norm")]
    return Seen(
        step.loss,
        step.grad_norm,
        step.tokens,
        trainer.training_data.batches._windows[0],
        trainer.evaluate(),
    )


def test_packed_conversations_are_learned_as_each_alone_and_exported_with_their_template(
    tmp_path: Path, run_world: Callable[..., list[Any]]
) -> None:
    from llmtrain_trainer.data.mixture import open_mixture

    run = from_spec("test", _spec(tmp_path, True, 1))
    data = prepare(run.data, LENGTH, tmp_path / "work")
    counts = [
        open_mixture(data, "train", 320, length).streams[0].windows(LENGTH)
        for length in (LENGTH, None)
    ]
    assert counts[0] < 0.7 * counts[1]
    runs = [
        from_spec("test", _spec(tmp_path, packing, count))
        for packing, count in zip((True, False), counts, strict=True)
    ]
    ((packed, padded),) = run_world(1, lambda _: [_learn(each, data) for each in runs])
    assert [packed.sequences, padded.sequences] == counts
    assert packed.tokens == padded.tokens
    assert packed.loss == pytest.approx(padded.loss, rel=1e-12)
    assert packed.norm == pytest.approx(padded.norm, rel=1e-12)
    assert packed.held_out.loss == pytest.approx(padded.held_out.loss, rel=1e-9)
    for packing, seen in ((True, packed), (False, padded)):
        _check_export(tmp_path, packing, data, seen)


def _check_export(folder: Path, packing: bool, data: Any, seen: Seen) -> None:
    """The exported model has the held-out loss of the run, and stops where turns end."""
    import torch
    import torch.nn.functional as F

    from llmtrain_trainer.data.examples import ExampleStream
    from llmtrain_trainer.weights.sample import load_model

    record = json.loads((folder / f"run-{packing}/step-1/llmtrain.json").read_text())
    assert record["packed"] is packing
    exported = folder / f"model-{packing}"
    assert (exported / "chat_template.jinja").read_text() == TEMPLATE
    model, loaded = load_model(exported)
    ids = {loaded.tokenizer.token_to_id(name) for name in ("<|end|>", "<|finish|>")}
    assert loaded.stop_tokens() >= ids

    held_out = ExampleStream(data.folder / "talk", "held-out", 320)
    assert held_out.windows(LENGTH) == HELD_OUT
    total, counted = 0.0, 0
    for number in range(HELD_OUT):
        length = held_out.real_tokens(number, LENGTH)
        tokens, targets = (
            torch.from_numpy(part[:length]) for part in held_out.window(number, LENGTH)
        )
        with torch.no_grad():
            logits = model(tokens[None])[0]
        total += float(F.cross_entropy(logits, targets, reduction="sum"))
        counted += int((targets >= 0).sum())
    assert seen.held_out.loss == pytest.approx(total / counted, rel=1e-5)
