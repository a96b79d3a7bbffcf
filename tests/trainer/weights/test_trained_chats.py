"""A chat model that has learned its conversations answers in `transformers` as it does here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.data.examples import ExampleStream
from llmtrain_trainer.data.prepare import prepare
from llmtrain_trainer.data.prepared import TRAIN, PreparedData
from llmtrain_trainer.job_spec import from_spec
from tests.support.command_line import llmtrain
from tests.support.trainer.chat_models import write_chat_model
from tests.support.trainer.jobs import job_spec
from tests.support.trainer.trained_text import decoded, tokenizer_for

pytestmark = pytest.mark.torch

Turn = tuple[str, str]

LENGTH = 64
TALKS: list[list[Turn]] = [
    [("user", "say hi"), ("assistant", "hi there")],
    [("user", "be brief"), ("assistant", "hi")],
    [("system", "say it twice"), ("user", "greet"), ("assistant", "hi there, hi there")],
    [("user", "now"), ("assistant", "say, be brief?"), ("user", "go on"), ("assistant", "be\nhi")],
    [("user", "and where"), ("assistant", "there it is\n")],
    [("user", "what is it?"), ("assistant", "it is 12, and é")],
    [("user", "not this"), ("assistant", "or that")],
]
"""Conversations with responses of different lengths. No message of a user is in another one."""

LONGEST = 40
"""Tokens after which an answer is cut. The longest response has fewer."""


def _spec(folder: Path, chat: dict[str, Any]) -> dict[str, Any]:
    """Return a job that learns all conversations but one by heart."""
    source = folder / "talk.jsonl"
    lines = [{"messages": [{"role": r, "content": c} for r, c in talk]} for talk in TALKS]
    source.write_text("\n".join(map(json.dumps, lines)))
    spec = job_spec(
        architecture={"layers": 2, "hiddenSize": 64, "ffnSize": 128, "sequenceLength": LENGTH},
        training={
            "steps": 100,
            "globalBatchSize": 4,
            "microBatchSize": 4,
            "optimizer": {"learningRate": 0.01, "weightDecay": 0.0},
        },
        precision="float32",
        checkpoint={"uri": (folder / "run").as_uri(), "everySteps": 100},
    )
    spec["data"] = {
        "objective": "sft",
        "heldOutFraction": 1 / len(TALKS),
        "sources": [{"name": "talk", "uri": source.as_uri()}],
        **chat,
    }
    return spec


@dataclass(frozen=True)
class Asked:
    """A conversation up to a response, and the response."""

    turns: list[Turn]
    answer: str

    def in_transformers(self, model: Any, tokenizer: Any) -> str:
        """Return the answer of a model of `transformers`, which must stop by itself."""
        import torch

        messages = [{"role": role, "content": content} for role, content in self.turns]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        with torch.no_grad():
            ids = model.generate(prompt, max_new_tokens=LONGEST, do_sample=False)[0]
        written = ids[prompt.size(1) :]
        assert len(written) < LONGEST, tokenizer.decode(written)
        return str(tokenizer.decode(written, skip_special_tokens=True))

    def on_command_line(self, model: Path) -> str:
        """Return the answer of `llmtrain sample --chat`. It takes one message of a user."""
        *system, (_, prompt) = self.turns
        options = ["--chat", f"--prompt={prompt}", f"--tokens={LONGEST}", "--temperature=0"]
        options += [f"--system={content}" for _, content in system]
        return str(json.loads(llmtrain("sample", model, *options, "-o", "json"))["text"])


def _trained(data: PreparedData) -> Iterator[Asked]:
    """Yield the responses of the conversations that are not held out."""
    tokenizer, stream = tokenizer_for(data), ExampleStream(data.folder / "talk", TRAIN, 320)
    count = stream.windows(LENGTH)
    texts = [decoded(tokenizer, stream.window(number, LENGTH)[0]) for number in range(count)]
    for talk in TALKS:
        if any(talk[-2][1] in text for text in texts):
            for place, (role, content) in enumerate(talk):
                if role == "assistant":
                    yield Asked(talk[:place], content)


@pytest.mark.parametrize("template", ["of the model", "chatml", "llama3"])
def test_a_trained_chat_model_answers_and_stops_in_transformers_as_here(
    template: str, tmp_path: Path, run_trainers: Callable[..., list[Any]]
) -> None:
    """Its answers are the responses that it was trained on, to the last character."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmtrain_trainer.weights.sample import SamplingOptions, chat, load_model

    settings: dict[str, Any] = {"chat": {"preset": template}}
    if template == "of the model":
        write_chat_model(tmp_path / "base")
        settings = {"tokenizer": {"uri": (tmp_path / "base" / "tokenizer.json").as_uri()}}
    spec = _spec(tmp_path, settings)
    run = from_spec("test", spec)
    data = prepare(run.data, LENGTH, tmp_path / "work")
    asked = list(_trained(data))
    turns = [turn for each in asked for turn, _ in each.turns]
    assert len(asked) == len(TALKS) and turns.count("system") == turns.count("assistant") == 1
    run_trainers(spec, data, lambda trainer: trainer.train())

    exported = tmp_path / "model"
    llmtrain("export", tmp_path / "run", "--to", exported)
    theirs = (
        AutoModelForCausalLM.from_pretrained(exported, local_files_only=True),
        AutoTokenizer.from_pretrained(exported, local_files_only=True),
    )
    ours = load_model(tmp_path / "run" / "step-100")
    for each in asked:
        assert each.in_transformers(*theirs) == each.answer
        assert chat(*ours, each.turns, LONGEST, SamplingOptions(0)) == each.answer
        if len(each.turns) < 3:
            assert each.on_command_line(exported) == each.answer
