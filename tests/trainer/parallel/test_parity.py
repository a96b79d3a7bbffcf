"""Every layout and schedule computes what one process computes.

`make test` runs cases that cover every pair of choices (a schedule and a shape, say); `make parity`
runs all of them and prints the table. All cases of one number of ranks run in one world of
processes, forked once: starting processes costs more than the steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from llmtrain_core.pipeline_schedules import (
    ONE_STAGE,
    SCHEDULES,
)
from tests.support.covering import selected, union
from tests.support.trainer.parity_cases import (
    BATCH,
    CASES,
    COVERING,
    GRID,
    LONG,
    SHAPES,
    Case,
    case,
)
from tests.support.trainer.ranks import Grids

pytestmark = [pytest.mark.torch, pytest.mark.timeout(1200)]

STEPS = 2

BARS = {"float64": (1e-12, 1e-10), "float32": (2e-6, 2e-6), "bfloat16": (5e-3, 5e-3)}
"""Largest relative difference of a loss and of a gradient norm."""

COLUMNS = "{:>5}  {:<16}  {:<21}  {:<11}  {:<6}  {:<9}  {:<9}  {:<9}  {}"
HEADER = ("ranks", "layout", "schedule", "recompute", "shape", "precision", "loss", "norm", "CPU s")


@dataclass(frozen=True)
class Numbers:
    """What a run of a few steps gave."""

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    before: float
    held_out: float
    seconds: float
    """CPU time of one rank, building the model included."""


RunWorld = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]


class Table:
    """Results by case; the first case of a world size runs all selected cases of that size."""

    def __init__(
        self, run_world: RunWorld, job_spec: MakeSpec, data: Any, cases: Iterable[Case]
    ) -> None:
        self._run_world, self._job_spec, self._data = run_world, job_spec, data
        self._cases = {case for each in cases for case in (each, each.alone())}
        self._found: dict[Case, Numbers] = {}

    def __getitem__(self, wanted: Case) -> Numbers:
        if wanted not in self._found:
            cases = [
                each for each in self._cases - self._found.keys() if each.ranks == wanted.ranks
            ]
            self._found |= self._run(sorted({*cases, wanted}, key=str))
        return self._found[wanted]

    def _run(self, cases: list[Case]) -> dict[Case, Numbers]:
        """Run cases one after the other on the same ranks; all ranks must see the same numbers."""
        from llmtrain_trainer.job_spec import from_spec

        runs = [(each, from_spec("parity", self._spec(each))) for each in cases]

        def body(rank: int) -> list[Numbers]:
            grids = Grids()
            return [_few_steps(run, self._data, grids) for _, run in runs]

        ranks = self._run_world(cases[0].ranks, body, timeout=1000)
        for seen in ranks[1:]:
            assert [each.losses for each in seen] == [each.losses for each in ranks[0]]
            assert [each.norms for each in seen] == [each.norms for each in ranks[0]]
        return dict(zip(cases, ranks[0], strict=True))

    def _spec(self, each: Case) -> dict[str, Any]:
        one_stage = each.schedule in ONE_STAGE or each.degree("pp") == 1
        return self._job_spec(
            **{LONG[name]: degree for name, degree in each.degrees},
            pipelineSchedule=each.schedule if each.degree("pp") > 1 else "1F1B",
            virtualStages=1 if one_stage else 2,
            precision=each.precision,
            architecture={"layers": each.layers, **SHAPES[each.shape]},
            training={
                "steps": STEPS,
                "globalBatchSize": BATCH,
                "microBatchSize": each.micro_batch(),
                "activationCheckpointing": each.recompute,
            },
        )


def _few_steps(run: Any, data: Any, grids: Grids) -> Numbers:
    import torch

    from llmtrain_trainer.training.trainer import Trainer

    start = time.process_time()
    trainer = Trainer(run, data, torch.device("cpu"), lambda report: None, grids.of(run))
    before = trainer.evaluate().loss
    reports = [trainer.take_step() for _ in range(STEPS)]
    return Numbers(
        tuple(report.loss for report in reports),
        tuple(report.grad_norm for report in reports),
        before,
        trainer.evaluate().loss,
        time.process_time() - start,
    )


@pytest.fixture(scope="module")
def table(
    run_world: RunWorld,
    job_spec: MakeSpec,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Table]:
    """Results on random tokens; one held-out batch, which empty sequences fill."""
    import numpy as np

    from llmtrain_trainer.data.prepare import PreparedData
    from llmtrain_trainer.data.shards import write_shards

    print("\nlargest relative differences of losses and gradient norms from one process")
    print(COLUMNS.format(*HEADER), end="")
    folder = tmp_path_factory.mktemp("parity")
    tokens = np.random.default_rng(0).integers(0, 320, 4000).astype(np.uint32)
    write_shards(folder, "train", [tokens], 320)
    write_shards(folder, "held-out", [tokens[:100]], 320)
    cases = [each["each"] for each in selected(request, "test_a_layout_equals_one_process")]
    alone = [Case((), shape=shape) for shape in SHAPES]
    data = PreparedData(folder, 4000, 100, "digest")
    yield Table(run_world, job_spec, data, [*cases, *alone])


def _difference(some: tuple[float, ...], others: tuple[float, ...]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize(
    "each",
    [
        pytest.param(each, marks=() if each in COVERING else pytest.mark.exhaustive, id=str(each))
        for each in CASES
    ],
)
def test_a_layout_equals_one_process(each: Case, table: Table) -> None:
    seen, alone = table[each], table[each.alone()]
    loss = _difference(
        (seen.before, *seen.losses, seen.held_out), (alone.before, *alone.losses, alone.held_out)
    )
    norm = _difference(seen.norms, alone.norms)
    figures = f"{loss:.1e}", f"{norm:.1e}", f"{seen.seconds:.2f}"
    print("\n" + COLUMNS.format(each.ranks, *each.words(), *figures), end="  ")
    most_loss, most_norm = BARS[each.precision]
    assert loss <= most_loss
    assert norm <= most_norm


def test_training_changes_the_loss(table: Table) -> None:
    """A parity of models that do not train would prove nothing."""
    for shape in SHAPES:
        alone = table[Case((), shape=shape)]
        assert abs(alone.before - alone.held_out) > 1e-3
        assert min(alone.norms) > 1e-3


def test_no_combination_is_missing() -> None:
    """All that has to be shown, and all of it with both kinds of activation checkpointing."""
    wanted = [case(f"pp2 {other}", s) for s in SCHEDULES for other in ("dp2", "tp2")]
    wanted += [case(GRID, s) for s in ("1F1B", "Interleaved1F1B", "ZBVZeroBubble", "DualPipeV")]
    wanted += [case(layout) for layout in ("rep2 tp2", "cp2 tp2", "pp2 cp2")]
    wanted += [case("tp2", shape="gpt3"), case("dp2 ep2", shape="moe")]
    wanted += [replace(each, recompute=kind) for each in wanted for kind in ("selective", "full")]
    assert set(wanted) <= set(CASES)
    assert len(set(CASES)) == len(CASES) >= 40
    assert {each.ranks for each in CASES} == {1, 2, 4, 8}


def test_the_chosen_cases_cover_every_pair_of_choices() -> None:
    assert union(map(Case.choices, COVERING)) == union(map(Case.choices, CASES))
    assert {each.ranks for each in COVERING} >= {2, 4, 8}
    assert sum(each.ranks for each in COVERING) < 0.45 * sum(each.ranks for each in CASES)
