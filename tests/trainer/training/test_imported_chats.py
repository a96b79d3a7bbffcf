"""Jobs on an imported chat model: they speak its language, from the data to the export."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.data.examples import ExampleStream
from llmtrain_trainer.data.prepared import HELD_OUT, TRAIN
from tests.support.command_line import llmtrain
from tests.support.trainer.chat_models import SHAPE, TEMPLATE, special_id, write_chat_model
from tests.support.trainer.jobs import job_spec

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

HANG = 240
"""Seconds after which a wait is given up."""

TALKS = [
    [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"hi {number}"}]
    for number in range(12)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    write_chat_model(folder)
    return folder


def _spec(folder: Path, model: Path, training: dict[str, Any]) -> dict[str, Any]:
    """Import the model, and return a job of fine-tuning that names neither tokenizer nor template.

    The section `model` of the job is the one that the import prints.
    """
    imported = json.loads(llmtrain("import", model, "--to", folder / "base", "-o", "json"))
    source = folder / "talk.jsonl"
    source.write_text("\n".join(json.dumps({"messages": talk}) for talk in TALKS))
    spec = job_spec(
        training={"globalBatchSize": 2, "microBatchSize": 2, **training},
        precision="float32",
        checkpoint={"uri": (folder / "run").as_uri(), "everySteps": 100_000},
        restarts=0,
    )
    spec["model"] = imported["model"]
    spec["data"] = {
        "objective": "sft",
        "heldOutFraction": 0.25,
        "sources": [{"name": "talk", "uri": source.as_uri()}],
    }
    return spec


def _running_status(pods: Any) -> dict[str, Any]:
    """Return the first status after a step."""
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{pods.address(0)}:9400/status", timeout=5) as got:
                status = json.loads(got.read())
            if status["step"]:
                return status  # type: ignore[no-any-return]
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"no step: {pods.log(0)[-3000:]}")


def _require_tokens_of(model: Path, prepared: Path) -> None:
    """Require that the examples have the tokens that `transformers` gives the conversations."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(model, local_files_only=True)
    expected = [theirs.apply_chat_template(talk, return_dict=False) for talk in TALKS]
    found = []
    for part in (TRAIN, HELD_OUT):
        stream = ExampleStream(prepared / "talk", part, SHAPE.vocab_size)
        for number in range(stream.windows(SHAPE.sequence_length)):
            tokens, targets = stream.window(number, SHAPE.sequence_length)
            count = stream.real_tokens(number, SHAPE.sequence_length)
            found.append([*tokens[:count].tolist(), int(targets[count - 1])])
    assert sorted(found) == sorted(expected)


def _require_files_of(model: Path, *folders: Path) -> None:
    """Require template, special tokens and stop tokens of a model in checkpoints and exports."""
    from transformers import AutoTokenizer, GenerationConfig

    theirs = AutoTokenizer.from_pretrained(model, local_files_only=True)
    for folder in folders:
        assert (folder / "chat_template.jinja").read_text() == TEMPLATE
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        assert loaded.chat_template == TEMPLATE
        assert loaded.special_tokens_map == theirs.special_tokens_map
        assert loaded.get_vocab() == theirs.get_vocab()
        generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        assert set(generation.eos_token_id) == {0, special_id("<|finish|>"), special_id("<|end|>")}
        assert (generation.temperature, generation.top_p) == (0.5, 0.9)


def _require_job_of(model: Path, folder: Path, pods: Any, shown: dict[str, Any]) -> None:
    """Require the template of the model in the log, in what is shown, and in the prepared data."""
    (base,) = (folder / "base").iterdir()
    origin = str(base / "tokenizer_config.json")  # where the model has its template
    assert shown["chatTemplate"] == origin
    assert f"data: the chat template is that of {origin}\n" in pods.log(0)
    (manifest,) = folder.glob("work-0/data/*/manifest.json")
    _require_tokens_of(model, manifest.parent)


def test_fine_tuning_of_an_imported_model_keeps_its_template_to_the_export(
    model: Path, tmp_path: Path, pods: Callable[[dict[str, Any]], Any]
) -> None:
    """The job is stopped, which saves a checkpoint, as soon as its status has been read."""
    one = pods(_spec(tmp_path, model, {"steps": 100_000}))
    process = one.fork(0)
    status = _running_status(one)
    process.terminate()
    process.join(HANG)
    assert process.exitcode == 143, one.log(0)[-3000:]
    _require_job_of(model, tmp_path, one, status)
    (step,) = (tmp_path / "run").glob("step-*")
    llmtrain("export", step, "--to", tmp_path / "model")
    _require_files_of(model, step, tmp_path / "model")


def test_adapters_of_an_imported_model_keep_its_template_to_the_merged_export(
    model: Path, tmp_path: Path, pods: Callable[[dict[str, Any]], Any]
) -> None:
    lora = {"rank": 2, "alpha": 4, "targets": ["q_proj", "down_proj"], "merge": True}
    spec = _spec(tmp_path, model, {"steps": 3, "lora": lora})
    spec["checkpoint"]["exportHuggingFace"] = (tmp_path / "model").as_uri()
    one = pods(spec)
    process = one.fork(0)
    process.join(HANG)
    assert process.exitcode == 0, one.log(0)[-3000:]
    _require_job_of(model, tmp_path, one, one.message(0)["result"])
    adapters = tmp_path / "run" / "step-3"
    llmtrain("export", adapters, "--to", tmp_path / "again")
    merged = tmp_path / "run" / "merged" / "step-3"
    _require_files_of(model, adapters, merged, tmp_path / "model", tmp_path / "again")
    weights = [each / "model.safetensors" for each in (tmp_path / "model", tmp_path / "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert weights[0].read_bytes() != (model / "model.safetensors").read_bytes()
