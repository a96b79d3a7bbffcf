"""The held-out loss is that of every token once, whatever the batch and the layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch

RunWorld = Callable[..., list[Any]]
RunTrainers = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]

SIZES = {"large": 301, "small": 9, "tiny": 2}
"""Held-out tokens by source; a sequence has 16. None of them fills whole batches."""

LAYOUTS = ["data", "tensor", "pipeline", "context", "replicate"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import numpy as np

    from llmtrain_trainer.data.prepare import PreparedData
    from llmtrain_trainer.data.shards import write_shards

    folder, random = tmp_path_factory.mktemp("three"), np.random.default_rng(3)
    for name, size in SIZES.items():
        (folder / name).mkdir()
        for part, count in (("train", 400), ("held-out", size)):
            ids = random.integers(0, 320, count).astype(np.uint32)
            write_shards(folder / name, part, [ids], 320)
    weights = tuple((name, 1.0) for name in sorted(SIZES))
    return PreparedData(folder, 1200, sum(SIZES.values()), "digest", weights)


def _spec(job_spec: MakeSpec, batch: int, micro: int, **layout: int) -> Any:
    from llmtrain_trainer.job_spec import from_spec

    training = {"globalBatchSize": batch, "microBatchSize": micro}
    return from_spec("test", job_spec(training=training, **layout))


def _scores(run_world: RunWorld, data: Any, ranks: int, runs: list[Any]) -> list[Any]:
    """Return the score of each run; all ranks must have the same ones."""

    def body(_: int) -> list[Any]:
        import torch

        from llmtrain_trainer.training.trainer import Trainer

        device = torch.device("cpu")
        return [Trainer(run, data, device, lambda report: None).evaluate() for run in runs]

    found = run_world(ranks, body)
    assert all(scores == found[0] for scores in found)
    return found[0]


def _reference(run: Any, data: Any) -> dict[str, float]:
    """Return the sum of the losses of each source, sequence by sequence, by a model of its own."""
    import torch
    import torch.nn.functional as F

    from llmtrain_trainer.data.shards import TokenStream
    from llmtrain_trainer.training.trainer import Trainer

    model = Trainer(run, data, torch.device("cpu"), lambda report: None).model.chunks[0]
    sums = {}
    for name, size in SIZES.items():
        ids = torch.from_numpy(TokenStream(data.folder / name, "held-out", 320).read(0, size))
        sums[name] = 0.0
        for start in range(0, size - 1, 16):
            part = ids[start : start + 17]
            padded = torch.cat((part[:-1], part.new_zeros(17 - len(part))))
            with torch.no_grad():
                logits = model(padded[None])[0, : len(part) - 1]
            sums[name] += float(F.cross_entropy(logits, part[1:], reduction="sum"))
    return sums


def test_the_loss_is_that_of_every_token_once(
    run_world: RunWorld, job_spec: MakeSpec, data: Any
) -> None:
    alone = [_spec(job_spec, *each) for each in ((8, 2), (2, 1), (4, 4), (32, 8))]
    (sums,) = run_world(1, lambda _: _reference(alone[0], data))
    count = sum(SIZES.values()) - len(SIZES)
    shared = [_spec(job_spec, 8, 2, **{each: 2}) for each in LAYOUTS]
    for score in _scores(run_world, data, 1, alone) + _scores(run_world, data, 2, shared):
        assert score.loss == pytest.approx(sum(sums.values()) / count, rel=1e-12)
        assert score.losses == pytest.approx(
            {name: sums[name] / (size - 1) for name, size in SIZES.items()}, rel=1e-12
        )
        assert score.exact_match is None


def test_exact_match_is_a_share_of_all_examples(
    run_world: RunWorld, job_spec: MakeSpec, tmp_path: Path
) -> None:
    """13 examples, of which an untrained model answers some as it would anyway."""
    import numpy as np

    from llmtrain_trainer.data.examples import COUNTED, FIRST
    from llmtrain_trainer.data.prepare import PreparedData
    from llmtrain_trainer.data.shards import write_shards
    from llmtrain_trainer.job_spec import from_spec

    prompts = [[1 + number, 2, 3] for number in range(13)]

    def spec(batch: int, micro: int, **layout: int) -> Any:
        training = {"globalBatchSize": batch, "microBatchSize": micro}
        made = job_spec(training=training, **layout)
        made["data"]["objective"] = "sft"
        return from_spec("test", made)

    def likeliest(_: int) -> list[int]:
        import torch

        from llmtrain_trainer.training.trainer import Trainer

        write(tmp_path, [[*prompt, 0] for prompt in prompts])
        data = PreparedData(tmp_path, 52, 52, "digest", examples=True)
        model = Trainer(spec(8, 2), data, torch.device("cpu"), lambda report: None).model.chunks[0]
        with torch.no_grad():
            tokens = torch.tensor([[*prompt, *[0] * 13] for prompt in prompts])
            answers: list[int] = model(tokens)[:, 2].argmax(-1).tolist()
        return answers

    def write(folder: Path, examples: list[list[int]]) -> None:
        for part in ("train", "held-out"):
            ids = [np.array(each, np.uint32) for each in examples]
            for each in ids:
                each[0] |= np.uint32(FIRST)
                each[-1] |= np.uint32(COUNTED)
            for old in folder.glob(f"{part}-*"):
                old.unlink()
            write_shards(folder, part, ids, 1 << 32)

    (answers,) = run_world(1, likeliest)
    right = 5
    ends = [answer if n < right else (answer + 1) % 320 for n, answer in enumerate(answers)]
    write(tmp_path, [[*prompt, end] for prompt, end in zip(prompts, ends, strict=True)])
    data = PreparedData(tmp_path, 52, 52, "digest", examples=True)
    alone = [spec(8, 2), spec(2, 1), spec(32, 8)]
    shared = [spec(8, 2, **{each: 2}) for each in ("data", "context", "pipeline")]
    for score in _scores(run_world, data, 1, alone) + _scores(run_world, data, 2, shared):
        assert score.exact_match == right / len(prompts)


def test_an_evaluation_ends_early_on_all_ranks_if_the_job_is_stopped(
    run_trainers: RunTrainers, job_spec: MakeSpec, data: Any
) -> None:
    """Otherwise it could take longer than the grace period, at whose end the ranks are killed."""

    def body(trainer: Any) -> list[Any]:
        import torch.distributed as dist

        from llmtrain_trainer.runtime.step_gate import StepGate

        gate, beats = StepGate(), []
        answers = iter([False, dist.get_rank() == 1])
        score = trainer.evaluator.evaluate(lambda: next(answers), lambda: beats.append(1))
        whole = trainer.evaluate(gate)
        gate.pause()
        return [score, len(beats), whole is not None, trainer.evaluate(gate)]

    spec = job_spec(data=2, training={"globalBatchSize": 4, "microBatchSize": 1})
    assert run_trainers(spec, data, body) == [[None, 1, True, None]] * 2


def test_steps_and_evaluations_are_recorded_once_over_restarts(
    run_trainers: RunTrainers, job_spec: MakeSpec, data: Any, tmp_path: Path
) -> None:
    import json

    def body(trainer: Any) -> list[Any]:
        from llmtrain_trainer.runtime.reports import EvaluationReport

        try:
            trainer.train()
        except ArithmeticError:
            return []
        reports = [each for each in trainer.sent if isinstance(each, EvaluationReport)]
        return [(each.when, each.step) for each in reports]

    def failing(trainer: Any) -> list[Any]:
        take_step = trainer.take_step

        def take(sampled: bool) -> Any:
            if trainer.step == 5:
                raise ArithmeticError("a fault in step 6")
            return take_step(sampled)

        trainer.take_step = take
        return body(trainer)

    spec = job_spec(
        data=2,
        checkpoint={"uri": tmp_path.as_uri(), "everySteps": 4},
        training={"steps": 9, "evaluateEverySteps": 2},
    )
    assert run_trainers(spec, data, failing) == [[], []]
    expected = [("before", 0), ("during", 6), ("during", 8), ("after", 9)]
    assert run_trainers(spec, data, body) == [expected] * 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 10))
    assert [line["tokens"] for line in steps] == [128 * step for step in range(1, 10)]
    assert [line["epoch"] for line in steps] == pytest.approx([8 * n / 72 for n in range(1, 10)])
    held_out = [line for line in lines if "heldOutLoss" in line]
    assert [line["step"] for line in held_out] == [0, 2, 4, 6, 8, 9]
    assert set(held_out[0]["heldOutLossBySource"]) == set(SIZES)


def test_a_stop_in_an_evaluation_saves_and_it_is_made_up_for(
    run_trainers: RunTrainers, job_spec: MakeSpec, data: Any, tmp_path: Path
) -> None:
    import json

    def stopped(trainer: Any) -> int:
        from llmtrain_trainer.runtime.step_gate import StepGate

        gate, evaluate = StepGate(), trainer.evaluator.evaluate

        def evaluate_late(stopping: Any, heartbeat: Any) -> Any:
            if trainer.step == 2:
                gate.pause()
                score = evaluate(stopping, heartbeat)
                gate.stop_after(2)
                return score
            return evaluate(stopping, heartbeat)

        trainer.evaluator.evaluate = evaluate_late
        trainer.train(gate)
        return trainer.step  # type: ignore[no-any-return]

    spec = job_spec(
        checkpoint={"uri": tmp_path.as_uri(), "everySteps": 50},
        training={"steps": 5, "evaluateEverySteps": 2},
    )
    assert run_trainers(spec, data, stopped) == [2]
    assert (tmp_path / "step-2" / ".metadata").exists()
    run_trainers(spec, data, lambda trainer: trainer.train())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "heldOutLoss" in line] == [0, 2, 4, 5]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]


def test_a_job_without_checkpoints_has_its_metrics_in_the_work_folder(
    run_world: RunWorld, job_spec: MakeSpec, data: Any, tmp_path: Path
) -> None:
    from llmtrain_trainer.job_spec import from_spec

    run = from_spec("test", job_spec(training={"steps": 2}))

    def body(_: int) -> None:
        import torch

        from llmtrain_trainer.training.trainer import Trainer

        Trainer(run, data, torch.device("cpu"), lambda report: None, work_dir=tmp_path).train()

    run_world(1, body)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
