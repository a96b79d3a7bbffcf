"""Compiled layers: the same numbers, or no training at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

RunTrainers = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _compiled_code_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank keeps it in a temporary folder, which ends with the pod."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_compiled_layers_equal_plain_ones(
    shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    """Under FSDP, with several layers and micro-batches; the gate itself passes on the way."""

    def train(trainer: Any) -> tuple[list[float], list[float]]:
        reports = [trainer.take_step() for _ in range(2)]
        return [r.loss for r in reports], [r.grad_norm for r in reports]

    [plain] = run_trainers(job_spec(), shards, train)
    [compiled] = run_trainers(job_spec(training={"compile": True}), shards, train, timeout=800)
    assert compiled[0] == pytest.approx(plain[0], rel=1e-12)
    assert compiled[1] == pytest.approx(plain[1], rel=1e-10)


def test_compiled_layers_equal_plain_ones_in_every_layout_they_go_with(
    tmp_path: Path, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    """Traced, differentiated and run operator by operator: what the layouts put around a layer does
    not depend on the code that is made of it, and making that takes a minute per rank."""

    def train(trainer: Any) -> tuple[list[float], list[float], int]:
        from torch._dynamo.utils import counters

        reports = [trainer.take_step() for _ in range(2)]
        traced = int(counters["stats"]["unique_graphs"])
        return [r.loss for r in reports], [r.grad_norm for r in reports], traced

    def compiled(trainer: Any) -> list[Any]:
        import torch

        from llmtrain_trainer.job_spec import from_spec
        from llmtrain_trainer.training.trainer import Trainer

        torch.compile = partial(torch.compile, backend="aot_eager")
        found = []
        for layout, attention in cases:
            torch._dynamo.reset()
            spec = job_spec(**layout, training={"compile": True})
            spec["data"]["attention"] = attention
            run = from_spec("test", spec)
            found.append(train(Trainer(run, trainer.data, trainer.device, trainer.send)))
        return found

    cases = [
        ({"data": 2}, "packed"),
        ({"replicate": 2}, "packed"),
        ({"pipeline": 2}, "packed"),
        ({"data": 2}, "document"),
    ]
    data, plain = _documents(tmp_path), {}
    for attention in ("packed", "document"):
        spec = job_spec()
        spec["data"]["attention"] = attention
        [plain[attention]] = run_trainers(spec, data, train)
        assert plain[attention][2] == 0
    assert plain["packed"][0] != plain["document"][0]
    for found in run_trainers(job_spec(data=2), data, compiled, timeout=800):
        for (_, attention), (losses, norms, traced) in zip(cases, found, strict=True):
            assert traced > 0
            assert losses == pytest.approx(plain[attention][0], rel=0, abs=1e-12)
            assert norms == pytest.approx(plain[attention][1], rel=1e-10)


def _documents(folder: Path) -> Any:
    """Write random tokens; every sequence has the ends of some documents."""
    import numpy as np

    from llmtrain_trainer.data.prepare import PreparedData
    from llmtrain_trainer.data.shards import write_shards

    random = np.random.default_rng(0)
    tokens = random.integers(0, 320, 4000).astype(np.uint32)
    tokens[::5] = 7
    for part in ("train", "held-out"):
        write_shards(folder, part, [tokens], 320)
    return PreparedData(folder, 4000, 4000, "digest", end=7)


def test_without_a_compiler_the_job_is_told_so(
    run_world: Callable[..., list[Any]], job_spec: MakeSpec, tmp_path: Path
) -> None:
    def body(rank: int) -> tuple[str, str | None, str | None]:
        import torch
        from torch._inductor import config

        config.cpp.cxx = (str(tmp_path / "missing"),)  # the environment's CXX is read at import
        from llmtrain_trainer.errors import InputError
        from llmtrain_trainer.job_spec import from_spec
        from llmtrain_trainer.parallel.compiled import check_compiler

        run = from_spec("job", job_spec(training={"compile": True}))
        try:
            check_compiler(run, torch.device("cpu"))
        except InputError as error:
            return error.reason, error.field, error.remedy
        raise AssertionError("compiled")

    [(reason, field, remedy)] = run_world(1, body, timeout=300)
    assert (reason, field) == ("CompileFailed", "spec.training.compile")
    assert remedy is not None
    assert "C++ compiler" in remedy


def test_a_layer_that_the_compiler_gets_wrong_is_refused(
    run_world: Callable[..., list[Any]], job_spec: MakeSpec
) -> None:
    """The gate compares gradients: a wrong one is found though the output is right."""

    def body(rank: int) -> str:
        import torch

        from llmtrain_trainer.errors import TrainerError
        from llmtrain_trainer.job_spec import from_spec
        from llmtrain_trainer.parallel.compiled import check_compiler

        def miscompile(forward: Any) -> Any:
            def run(x: Any, *others: Any) -> Any:
                return forward(x.detach() + 0.9 * (x - x.detach()), *others)

            return run

        torch.compile = miscompile
        run = replace(from_spec("job", job_spec()), compile=True)
        try:
            check_compiler(run, torch.device("cpu"))
        except TrainerError as error:
            return error.reason
        return "passed"

    assert run_world(1, body) == ["CompileMismatch"]
