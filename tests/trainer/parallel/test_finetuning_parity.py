"""Fine-tuning computes on every layout what it computes in one process.

Responses count in the loss and prompts do not, so data ranks and micro-batches see different
numbers of counted tokens; and adapters are split over ranks in two ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.support.trainer.parity_cases import LONG, ranks_of, read_layout
from tests.support.trainer.ranks import Grids

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

RunWorld = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS = 3
"""An adapter's A has a gradient from the second step on: its B starts at zero."""


@dataclass(frozen=True)
class Case:
    """One layout, trained whole or by adapters."""

    layout: str
    lora: bool = False
    schedule: str = "1F1B"
    recompute: str = "none"
    experts: int = 1
    """With experts, the balance of their use leaves out padding."""

    @property
    def degrees(self) -> dict[str, int]:
        return {LONG[name]: degree for name, degree in read_layout(self.layout).items()}

    @property
    def ranks(self) -> int:
        return ranks_of(read_layout(self.layout))

    def __str__(self) -> str:
        words = [self.layout or "one process", "lora" if self.lora else "sft", self.schedule]
        words += ["experts"] if self.experts > 1 else []
        return " ".join(words + ([self.recompute] if self.recompute != "none" else []))


CASES = [
    Case(""),
    Case("", lora=True),
    *(Case(layout, lora) for layout in ("dp2", "tp2", "pp2") for lora in (False, True)),
    *(Case("tp2", True, recompute=kind) for kind in ("full", "selective")),
    Case("cp2 tp2"),
    Case("rep2 tp2", lora=True),
    Case("pp2 dp2", True, "ZBVZeroBubble"),
    Case("pp2 dp2 tp2"),
    Case("pp2 dp2 tp2", lora=True),
    Case("", experts=4),
    Case("pp2", recompute="full", experts=4),
    Case("cp2 tp2", experts=4),
    Case("pp2 dp2", schedule="ZBVZeroBubble", experts=4),
]


@dataclass(frozen=True)
class Seen:
    """What a few steps of a case gave."""

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    held_out: tuple[float, float]
    exact: float | None
    """Share of held-out examples answered to the letter after the last step."""
    merged: float
    """Largest difference of a logit between adapters and merged weights, over the largest logit."""
    frozen: bool
    """Whether every weight but the adapters' is as it was."""
    planned: bool
    """Whether a rank has as many parameters that learn as the plan says."""
    stateful: bool
    """Whether all parameters that learn have optimizer state, and no other."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Examples of 4 to 17 random tokens, of which a few at the end count."""
    import numpy as np

    from llmtrain_trainer.data.examples import COUNTED, FIRST
    from llmtrain_trainer.data.prepare import PreparedData
    from llmtrain_trainer.data.shards import write_shards

    folder = tmp_path_factory.mktemp("examples")
    random = np.random.default_rng(0)

    def example() -> Any:
        length = int(random.integers(4, 18))
        ids = random.integers(0, 320, length).astype(np.uint32)
        start = int(random.integers(2, length))
        ids[start:] = 7  # soon learnt, so that some examples are answered to the letter
        ids[start : start + int(random.integers(0, 2))] = 8
        ids[start:] |= np.uint32(COUNTED)
        ids[0] |= np.uint32(FIRST)
        return ids

    write_shards(folder, "train", [example() for _ in range(50)], 1 << 32)
    write_shards(folder, "held-out", [example() for _ in range(11)], 1 << 32)
    return PreparedData(folder, 500, 100, "digest", examples=True)


@pytest.fixture(scope="module")
def seen(run_world: RunWorld, job_spec: MakeSpec, data: Any) -> dict[Case, Seen]:
    """All cases; those with equally many ranks share a world."""
    from llmtrain_trainer.job_spec import from_spec

    def spec(each: Case) -> Any:
        made = job_spec(
            **each.degrees,
            pipelineSchedule=each.schedule,
            virtualStages=1 if each.schedule in ("1F1B", "GPipe") else 2,
            training={
                "steps": STEPS,
                "globalBatchSize": 8,
                "activationCheckpointing": each.recompute,
                "microBatchSize": 1 if each.schedule == "DualPipeV" else 2,
            },
        )
        made["data"]["objective"] = "sft"
        if each.experts > 1:
            made["model"]["architecture"] |= {
                "experts": each.experts,
                "expertsPerToken": 2,
                "loadBalancingWeight": 0.5,
            }
        if each.lora:
            made["model"]["initFrom"] = "file:///nowhere"
            made["training"]["lora"] = {"rank": 3, "alpha": 12, "targets": ALL}
        return from_spec("parity", made)

    found: dict[Case, Seen] = {}
    for ranks in sorted({each.ranks for each in CASES}):
        cases = [each for each in CASES if each.ranks == ranks]
        runs = [spec(each) for each in cases]

        def body(_: int, runs: list[Any] = runs) -> list[Seen]:
            grids = Grids()
            return [_few_steps(run, data, grids) for run in runs]

        results = run_world(ranks, body, timeout=300)
        for others in results[1:]:
            assert [each.losses for each in others] == [each.losses for each in results[0]]
        found |= {
            each: replace(
                of_ranks[0],
                merged=max(rank.merged for rank in of_ranks),  # only the last stage has logits
                frozen=all(rank.frozen for rank in of_ranks),
                stateful=all(rank.stateful for rank in of_ranks),
                planned=all(rank.planned for rank in of_ranks),
            )
            for each, of_ranks in zip(cases, zip(*results, strict=True), strict=True)
        }
    return found


def _few_steps(run: Any, data: Any, grids: Grids) -> Seen:
    import torch

    from llmtrain_trainer.parallel.adapters import merge
    from llmtrain_trainer.training.trainer import Trainer

    trainer = Trainer(run, data, torch.device("cpu"), lambda report: None, grids.of(run))
    # an evaluation leaves some parameters gathered; these are the shards
    named = dict(trainer.model.named_parameters())
    fixed = {
        name: each.to_local().clone() for name, each in named.items() if not each.requires_grad
    }
    before = trainer.evaluate()
    reports = [trainer.take_step() for _ in range(STEPS)]
    after = trainer.evaluate()
    frozen = all(torch.equal(named[name].to_local(), was) for name, was in fixed.items())
    learning = {each for each in named.values() if each.requires_grad}
    merged = 0.0
    if run.lora is not None:
        assert {name for name, each in named.items() if each in learning} == {
            name for name in named if ".lora." in name
        }
        adapted = _logits(trainer)
        merge(trainer.model)
        merged = _difference(_logits(trainer), adapted)
    return Seen(
        tuple(report.loss for report in reports),
        tuple(report.grad_norm for report in reports),
        (before.loss, after.loss),
        after.exact_match,
        merged,
        frozen,
        _as_planned(trainer, sum(each.to_local().numel() for each in learning)),
        learning == set(trainer.optimizer.state),
    )


def _as_planned(trainer: Any, count: int) -> bool:
    """Compare with the plan, which speaks of the first of the ranks that share out a stage."""
    from llmtrain_core.plan.model.parameters import stage_units, stages

    run, grid = trainer.run, trainer.grid
    if grid.coordinate("data") or grid.coordinate("context"):
        return True
    ranks = run.layout.pipeline
    stage = stages(run.architecture.layers, ranks, run.schedule, run.chunks)[
        grid.coordinate("pipeline")
    ]
    units = stage_units(run.shape, stage, run.layout.tensor)
    return units.learnt.sharded(run.layout.data * run.layout.context) == count


def _logits(trainer: Any) -> Any:
    """Return the logits of the held-out batches; None on a rank that predicts nothing."""
    import torch

    from llmtrain_trainer.parallel import forward_backward

    kept: list[Any] = []

    class Keep(forward_backward.NextTokenLoss):
        def evaluate(self, logits: Any, targets: Any, examples: bool) -> Any:
            kept.append(forward_backward.full_value(logits))
            return super().evaluate(logits, targets, examples)

    loss, trainer.forward_backward.loss = trainer.forward_backward.loss, Keep()
    trainer.evaluate()
    trainer.forward_backward.loss = loss
    return torch.cat([each.flatten() for each in kept]) if kept else None


def _difference(some: Any, others: Any) -> float:
    return 0.0 if some is None else float((some - others).abs().max() / others.abs().max())


@pytest.mark.parametrize("each", CASES, ids=str)
def test_a_layout_equals_one_process(each: Case, seen: dict[Case, Seen]) -> None:
    found, alone = seen[each], seen[Case("", each.lora, experts=each.experts)]
    pairs = zip((*found.losses, *found.held_out), (*alone.losses, *alone.held_out), strict=True)
    loss = max(abs(a - b) / abs(b) for a, b in pairs)
    norm = max(abs(a - b) / b for a, b in zip(found.norms, alone.norms, strict=True))
    print(f"\n{each!s:<36} loss {loss:8.1e}  norm {norm:8.1e}  merged {found.merged:8.1e}", end="")
    assert loss <= 1e-12
    assert norm <= 1e-10
    assert found.exact == alone.exact
    assert found.merged <= 1e-12
    assert found.frozen and found.stateful and found.planned


@pytest.mark.parametrize("lora", [False, True])
def test_some_examples_are_answered_to_the_letter_and_some_are_not(
    lora: bool, seen: dict[Case, Seen]
) -> None:
    """An equality of zeros would prove nothing."""
    alone = seen[Case("", lora)]
    assert alone.exact is not None and 0 < alone.exact < 1
    assert alone.held_out[1] < alone.held_out[0] - 0.01
