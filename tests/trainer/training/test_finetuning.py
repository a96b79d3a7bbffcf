"""Fine-tuning learns: from real definitions to what kind of thing they define.

The base has read other definitions of the same dictionary, and never a question. Held-out pairs
were seen by neither.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

RunWorld = Callable[..., list[Any]]

ARCHITECTURE = {
    "layers": 2,
    "hiddenSize": 64,
    "heads": 4,
    "ffnSize": 192,
    "vocabSize": 1024,
    "sequenceLength": 40,
}
LONGEST = 48
"""Characters of a definition; a sample of the shorter ones learns quicker."""


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of the demonstration set."""
    tool = [sys.executable, str(ROOT / "hack" / "definitions.py")]
    made = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    whole, sample = Path(made.stdout.strip()), tmp_path_factory.mktemp("definitions")
    chance = random.Random(0)
    glosses = [
        text for text in (whole / "glosses.txt").read_text().split("\n\n") if len(text) <= LONGEST
    ]
    (sample / "glosses.txt").write_text("\n\n".join(chance.sample(glosses, 10_000)))
    pairs = [
        line
        for line in (whole / "pairs.jsonl").read_text().splitlines()
        if len(json.loads(line)["prompt"]) <= LONGEST
    ]
    (sample / "pairs.jsonl").write_text("\n".join(chance.sample(pairs, 8000)))
    return sample


def spec_of(source: Path, steps: int, rate: float, **sections: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "model": {"architecture": ARCHITECTURE},
        "data": {"sources": [{"name": "words", "uri": f"file://{source}"}]},
        "training": {
            "steps": steps,
            "globalBatchSize": 64,
            "microBatchSize": 64,
            "precision": "float32",
            "optimizer": {"learningRate": rate, "weightDecay": 0.01},
            "schedule": {"warmupSteps": 10},
            "seed": 1,
        },
        "parallelism": {"data": 1},
        "workers": {"gpusPerNode": 1, "image": "test"},
    }
    for name, section in sections.items():
        made[name] = {**made.get(name, {}), **section}
    return made


@dataclass(frozen=True)
class Learnt:
    """What one job found out."""

    before: Any
    after: Any
    answers: list[tuple[list[int], list[int], bool]]
    """(response, what greedy decoding writes, whether evaluation calls it exact) of some held-out
    examples, after the last step."""
    commonest: float
    """Share of the commonest response among the held-out ones."""


def _learn(trainer: Any) -> Learnt:
    from llmtrain_trainer.data.held_out import DataShare

    trainer.train()
    after = trainer.evaluate()
    if not trainer.data.examples:
        return Learnt(trainer.held_out_before, after, [], 0.0)
    held_out = trainer.evaluator.held_out
    (batch,) = held_out.batches(DataShare(0, 1, sum(held_out.counts), 1))
    answers = [
        _answer(trainer, tokens, targets)
        for tokens, targets in zip(batch.tokens[:24], batch.targets[:24], strict=True)
    ]
    responses = Counter(tuple(row[row >= 0].tolist()) for row in batch.targets)
    return Learnt(
        trainer.held_out_before, after, answers, responses.most_common(1)[0][1] / responses.total()
    )


def _answer(trainer: Any, tokens: Any, targets: Any) -> tuple[list[int], list[int], bool]:
    """Generate as many tokens as the response has, one after the other."""
    import torch

    from llmtrain_trainer.parallel.forward_backward import count_mismatches

    model = trainer.model.chunks[0]
    wanted = targets[targets >= 0].tolist()
    start = int((targets >= 0).nonzero()[0])
    written = tokens.clone()
    written[start + 1 :] = 0
    with torch.no_grad():
        for place in range(start, start + len(wanted)):
            written[place + 1] = model(written[None])[0, place].argmax()
        exact = bool(count_mismatches(model(tokens[None]), targets[None]) == 0)
    return wanted, written[start + 1 : start + 1 + len(wanted)].tolist(), exact


@pytest.fixture(scope="module")
def learnt(
    definitions: Path, tmp_path_factory: pytest.TempPathFactory, run_world: RunWorld
) -> dict[str, Learnt]:
    """A base, then two jobs on it: all weights, and adapters."""
    work, base = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("base")
    on_base = {
        "model": {"initFrom": f"file://{base}"},
        "data": {"objective": "sft", "chat": {"preset": "plain"}},
    }
    adapters = {
        "rank": 16,
        "alpha": 32,
        "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }
    glosses, pairs = definitions / "glosses.txt", definitions / "pairs.jsonl"
    jobs = {
        "base": spec_of(glosses, 50, 0.01, checkpoint={"uri": f"file://{base}"}),
        "sft": spec_of(pairs, 150, 0.005, **on_base),
        "lora": spec_of(pairs, 40, 0.01, training={"lora": adapters}, **on_base),
    }

    def body(_: int) -> dict[str, Learnt]:
        import torch

        from llmtrain_trainer.checkpoint.init_from import base_tokenizer
        from llmtrain_trainer.data.prepare import prepare
        from llmtrain_trainer.job_spec import from_spec
        from llmtrain_trainer.training.trainer import Trainer

        found = {}
        for name, spec in jobs.items():
            run = from_spec(name, spec)
            data = prepare(run.data, run.sequence, work, base_tokenizer)
            found[name] = _learn(Trainer(run, data, torch.device("cpu"), lambda report: None))
        return found

    return run_world(1, body, timeout=800)[0]  # type: ignore[no-any-return]


def show(name: str, found: Learnt) -> None:
    before, after = found.before, found.after
    print(
        f"\n{name}: exact match {before.exact_match:.3f} -> {after.exact_match:.3f} (commonest"
        f" {found.commonest:.3f}), loss {before.loss:.3f} -> {after.loss:.3f}",
        end="",
    )


def test_held_out_definitions_are_told_better_than_by_the_base(learnt: dict[str, Learnt]) -> None:
    found = learnt["sft"]
    show("sft", found)
    assert found.before.exact_match < 0.05
    # better than whoever always gives the commonest answer
    assert found.after.exact_match > found.commonest + 0.05
    assert found.after.loss <= found.before.loss - 0.5


def test_adapters_alone_lower_the_held_out_loss(learnt: dict[str, Learnt]) -> None:
    """By less: the output projection of a base that has seen little is small, and frozen."""
    found = learnt["lora"]
    show("lora", found)
    assert found.after.loss <= found.before.loss - 0.5


def test_exact_match_is_what_greedy_decoding_writes(learnt: dict[str, Learnt]) -> None:
    """Though it is measured in one pass, without generating."""
    answers = learnt["sft"].answers
    assert [found == wanted for wanted, found, _ in answers] == [exact for _, _, exact in answers]
    assert 0 < sum(exact for _, _, exact in answers) < len(answers)
