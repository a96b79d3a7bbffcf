"""Documents and packed examples give, on every layout, what each of them gives alone.

The reference is one process that runs the documents of a step one by one, through a model that
knows of no documents, and adds up their gradients. Packed examples are also compared with the same
examples in sequences of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.support.trainer import parity_cases
from tests.support.trainer.example_data import random_examples
from tests.support.trainer.parity_cases import LONG, ranks_of, read_layout
from tests.support.trainer.ranks import Grids

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

RunWorld = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]

STEPS = 2
BATCH = 8
BARS = {"float64": 1e-12, "bfloat16": 5e-3}
"""Largest relative difference of a loss and of a gradient norm."""
END = 5
"""Token that ends a document."""

INPUTS = (16, 13, 12, 11, 10, 9, 8, 7, 6, 6, 5, 5, 4, 4, 3, 2)
"""Lengths of the examples. They fill `BATCH` sequences, so every step has all of them."""

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt": parity_cases.SHAPES["gpt"],
    "moe": {"experts": 4, "expertsPerToken": 2, "loadBalancingWeight": 0.5},
}


@dataclass(frozen=True)
class Case:
    """One layout, of running text or of examples."""

    layout: str
    kind: str = "text"
    shape: str = "llama"
    schedule: str = "1F1B"
    recompute: str = "none"
    precision: str = "float64"
    way: str = "packed"
    """packed: documents share sequences; padded: one example per sequence; alone: one by one."""

    @property
    def degrees(self) -> dict[str, int]:
        return {LONG[name]: degree for name, degree in read_layout(self.layout).items()}

    @property
    def ranks(self) -> int:
        return ranks_of(read_layout(self.layout))

    def __str__(self) -> str:
        words = [self.layout or "one process", self.kind, self.shape, self.schedule]
        others = (self.recompute, self.precision, self.way)
        return " ".join(words + [each for each in others if each not in ("none", "float64")])


def _text(*layouts: str, **others: str) -> list[Case]:
    return [Case(layout, **others) for layout in layouts]


def _examples(*layouts: str, **others: str) -> list[Case]:
    return [Case(layout, "examples", **others) for layout in layouts]


CASES = [
    *_text("", "dp2", "tp2", "cp2", "pp2", "rep2", "cp4", "cp2 tp2", "dp2 cp2", "pp2 cp2"),
    *_text("pp2 cp2 tp2"),
    *_text("pp2 dp2", schedule="ZBVZeroBubble"),
    *_text("pp2 cp2", schedule="Interleaved1F1B", recompute="full"),
    *_text("cp2", "tp2", recompute="full"),
    *_text("cp2 tp2", recompute="selective"),
    *_text("", "cp2 tp2", "pp2 tp2", shape="gpt"),
    *_text("", "cp2 tp2", precision="bfloat16"),
    *_examples("", "dp2", "tp2", "cp2", "pp2", "cp2 tp2", "pp2 cp2"),
    *_examples("pp2 dp2", schedule="ZBVZeroBubble"),
    *_examples("", "dp2 ep2", "cp2", "tp2", "pp2", shape="moe"),
    *_examples("pp2", shape="moe", recompute="full"),
    *_examples("", way="padded"),
    *_examples("", "cp2", "dp2", shape="moe", way="padded"),
]
ALONE = [
    Case("", kind, shape, way="alone")
    for kind, shape in (
        ("text", "llama"),
        ("text", "gpt"),
        ("examples", "llama"),
        ("examples", "moe"),
    )
]


@dataclass(frozen=True)
class Seen:
    """Results of a few steps."""

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    tokens: int
    held_out: float
    """Held-out loss after the last step."""


class OneByOne:
    """Forward and backward passes of each document alone, through a model without masks."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def train(self, tokens: Any, targets: Any, loss_tokens: int, division: Any) -> Any:
        import torch
        import torch.nn.functional as F

        from llmtrain_trainer.parallel.forward_backward import count_examples

        count_examples((self._model,), division)
        total = torch.zeros((), dtype=torch.float64)
        for row, part in self._parts(division):
            logits = self._model(tokens[row : row + 1, part])
            loss = F.cross_entropy(logits[0], targets[row, part], reduction="sum") / loss_tokens
            loss.backward()
            total += loss.detach()
        return total

    def evaluate(self, tokens: Any, targets: Any, division: Any) -> Any:
        import torch
        import torch.nn.functional as F

        from llmtrain_trainer.parallel.forward_backward import EvaluationResult

        if division.documents is None:  # held-out examples have sequences of their own
            division = replace(division, documents=torch.zeros_like(tokens))
        losses = torch.zeros(len(tokens), dtype=torch.float64)
        for row, part in self._parts(division):
            with torch.no_grad():
                logits = self._model(tokens[row : row + 1, part])
            losses[row] += F.cross_entropy(logits[0], targets[row, part], reduction="sum")
        return EvaluationResult(losses, torch.zeros(len(tokens), dtype=torch.int64))

    def _parts(self, division: Any) -> Iterator[tuple[int, slice]]:
        for row, numbers in enumerate(division.documents.tolist()):
            for number in sorted(set(numbers) - {-1}):
                places = [place for place, each in enumerate(numbers) if each == number]
                yield row, slice(places[0], places[-1] + 1)


@pytest.fixture(scope="module")
def seen(
    run_world: RunWorld, job_spec: MakeSpec, tmp_path_factory: pytest.TempPathFactory
) -> dict[Case, Seen]:
    """All cases; those with equally many ranks share a world."""
    import numpy as np

    from llmtrain_trainer.data.prepare import PreparedData
    from llmtrain_trainer.data.shards import write_shards
    from llmtrain_trainer.job_spec import from_spec

    folder = tmp_path_factory.mktemp("text")
    random = np.random.default_rng(0)
    tokens = random.integers(0, 320, 2000).astype(np.uint32)
    tokens[random.random(2000) < 0.15] = END
    write_shards(folder, "train", [tokens], 320)
    write_shards(folder, "held-out", [tokens[:200]], 320)
    text = PreparedData(folder, 2000, 200, "digest", end=END)
    folder = tmp_path_factory.mktemp("examples")
    examples = random_examples(folder, [each + 1 for each in INPUTS])

    def spec(each: Case) -> Any:
        in_turns = each.schedule == "1F1B" or each.way == "alone"
        made = job_spec(
            **each.degrees,
            precision=each.precision,
            pipelineSchedule="1F1B" if in_turns else each.schedule,
            virtualStages=1 if in_turns else 2,
            architecture={
                **SHAPES[each.shape],
                "layers": 4 if each.schedule != "1F1B" else 2,
            },
            training={
                "steps": STEPS,
                "globalBatchSize": len(INPUTS) if each.way == "padded" else BATCH,
                "activationCheckpointing": each.recompute,
                "microBatchSize": 2,
            },
        )
        if each.kind == "text":
            made["data"]["attention"] = "document"
        else:
            made["data"] |= {"objective": "sft", "packing": each.way != "padded"}
        return from_spec("parity", made)

    found: dict[Case, Seen] = {}
    for ranks in sorted({each.ranks for each in CASES}):
        cases = [each for each in (*_with_references(), *CASES) if each.ranks == ranks]
        runs = [(each, spec(each), text if each.kind == "text" else examples) for each in cases]

        def body(_: int, runs: list[Any] = runs) -> list[Seen]:
            grids = Grids()
            return [_few_steps(*run, grids) for run in runs]

        results = run_world(ranks, body, timeout=300)
        assert all(others == results[0] for others in results[1:])
        found |= dict(zip(cases, results[0], strict=True))
    return found


def _with_references() -> Iterator[Case]:
    """Yield the references; models of the V schedules have more layers."""
    yield from ALONE
    yield from (replace(each, schedule="ZBVZeroBubble") for each in ALONE if each.shape == "llama")
    yield Case("", precision="bfloat16", way="alone")


def _few_steps(each: Case, run: Any, data: Any, grids: Grids) -> Seen:
    import torch

    from llmtrain_trainer.training.trainer import Trainer

    trainer = Trainer(run, data, torch.device("cpu"), lambda report: None, grids.of(run))
    if each.way == "alone":
        one_by_one = OneByOne(trainer.model.chunks[0])
        trainer.forward_backward = trainer.evaluator._forward_backward = one_by_one
    reports = [trainer.take_step() for _ in range(STEPS)]
    return Seen(
        tuple(report.loss for report in reports),
        tuple(report.grad_norm for report in reports),
        reports[0].tokens,
        trainer.evaluate().loss,
    )


def _difference(some: tuple[float, ...], others: tuple[float, ...]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("each", CASES, ids=str)
def test_a_layout_gives_what_each_document_gives_alone(each: Case, seen: dict[Case, Seen]) -> None:
    schedule = "1F1B" if each.schedule == "1F1B" else "ZBVZeroBubble"
    alone = seen[Case("", each.kind, each.shape, schedule, precision=each.precision, way="alone")]
    found = seen[each]
    loss = _difference((*found.losses, found.held_out), (*alone.losses, alone.held_out))
    norm = _difference(found.norms, alone.norms)
    print(f"\n{each!s:<60} loss {loss:8.1e}  norm {norm:8.1e}", end="")
    assert loss <= BARS[each.precision]
    assert norm <= BARS[each.precision]
    assert found.tokens == alone.tokens


def test_training_changes_what_is_compared(seen: dict[Case, Seen]) -> None:
    """A parity of models that do not train would prove nothing."""
    for each in ALONE:
        losses, norms = seen[each].losses, seen[each].norms
        assert abs(losses[0] - losses[1]) > 1e-3 and min(norms) > 1e-3
    assert seen[Case("", "examples", way="alone")].tokens == sum(INPUTS)


def test_examples_fill_the_sequences_of_a_step() -> None:
    import numpy as np

    from llmtrain_trainer.data.packing import pack

    _, ends = pack(np.array(INPUTS), 16)
    assert len(ends) == BATCH < len(INPUTS)
