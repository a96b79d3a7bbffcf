"""Going on changes nothing: to the bit in one layout, within rounding in all others."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch

RunTrainers = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]

KINDS = [(p, a) for p in ("float64", "float32", "bfloat16") for a in (False, True)]


def _another(trainer: Any, spec: dict[str, Any]) -> Any:
    """Build a trainer of another job in the same ranks; in the same layout, on the same grid."""
    from llmtrain_trainer.job_spec import from_spec
    from llmtrain_trainer.training.trainer import Trainer

    run = from_spec("test", spec)
    grid = trainer.grid if run.layout == trainer.run.layout else None
    return Trainer(run, trainer.data, trainer.device, trainer.send, grid)


def test_every_precision_goes_on_with_the_same_bits_however_it_was_saved(
    tmp_path: Path,
    shards: Any,
    run_trainers: RunTrainers,
    job_spec: MakeSpec,
    parameter_hash: Callable[[Any], str],
) -> None:
    """Training goes on while the background writes: what it writes is the state of the save."""

    def spec(precision: str, background: bool) -> dict[str, Any]:
        uri = f"file://{tmp_path}/{precision}-{background}"
        checkpoint = {"uri": uri, "everySteps": 2, "keep": 3, "async": background}
        return job_spec(
            tensor=2, precision=precision, checkpoint=checkpoint, architecture={"layers": 2}
        )

    def train(first: Any) -> list[tuple[Any, ...]]:
        import torch.distributed as dist

        found = []
        for precision, background in KINDS:
            whole = _another(first, spec(precision, background))
            while whole.step < 5:
                whole.take_step()
                if whole.step == 2:
                    whole.save()
            whole.wait_for_save()
            again = _another(first, spec(precision, background))
            again.resume()
            start = again.step
            while again.step < 5:
                again.take_step()
            dist.barrier()
            found.append(
                (precision, background, start, parameter_hash(again) == parameter_hash(whole))
            )
        return found

    found = run_trainers(spec("float64", False), shards, train, timeout=280)
    assert found == [[(*kind, 2, True) for kind in KINDS]] * 2


WORLDS: dict[int, list[dict[str, Any]]] = {
    2: [
        {"tensor": 2},
        {"data": 2},
        {"pipeline": 2, "pipelineSchedule": "Interleaved1F1B", "virtualStages": 2},
        {"context": 2},
        {"replicate": 2},
    ],
    4: [
        {"pipeline": 2, "tensor": 2, "pipelineSchedule": "ZBVZeroBubble", "virtualStages": 2},
        {"replicate": 2, "data": 2},
        {"pipeline": 4},
        {"context": 2, "tensor": 2},
        {"pipeline": 2, "data": 2},
    ],
    1: [{}],
}
"""Layouts one after the other, by number of ranks."""


def test_a_run_goes_on_from_layout_to_layout(
    tmp_path: Path, shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    """Eleven changes of layout; in each the second step needs the optimizer's state as well."""
    changes = sum(map(len, WORLDS.values()))
    steps = 2 * (changes + 1)
    checkpoint = {"uri": f"file://{tmp_path}", "everySteps": 100, "keep": 2}

    def spec(layout: dict[str, Any]) -> dict[str, Any]:
        return job_spec(**layout, checkpoint=checkpoint, training={"steps": steps})

    def two_steps(trainer: Any) -> list[float]:
        losses = [trainer.take_step().loss for _ in range(2)]
        trainer.save()
        return losses

    def straight(trainer: Any) -> list[float]:
        return two_steps(trainer) + [trainer.take_step().loss for _ in range(steps - 2)]

    def through(first: Any) -> list[float]:
        losses: list[float] = []
        for layout in WORLDS[first.run.layout.world_size]:
            trainer = _another(first, spec(layout))
            trainer.resume()
            losses += two_steps(trainer)
        return losses

    expected = run_trainers(spec({}), shards, straight)[0]
    found = expected[:2]
    for layouts in WORLDS.values():
        found += run_trainers(spec(layouts[0]), shards, through, 280)[0]
    assert changes >= 10
    assert found == pytest.approx(expected, rel=0, abs=1e-12)


def test_what_cannot_be_read_is_tried_again_passed_over_or_named(
    tmp_path: Path,
    shards: Any,
    run_trainers: RunTrainers,
    job_spec: MakeSpec,
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint = {"uri": f"file://{tmp_path}", "everySteps": 1, "keep": 3}
    spec = job_spec(data=2, checkpoint=checkpoint)

    def work(trainer: Any) -> list[Any]:
        import logging

        import torch.distributed as dist

        from llmtrain_trainer.checkpoint import retry, shards
        from llmtrain_trainer.errors import InputError

        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("llmtrain_trainer").addHandler(handler)

        for _ in range(3):
            trainer.take_step()
            trainer.save()

        def resumed(spec: dict[str, Any] = spec) -> int | str:
            again = _another(trainer, spec)
            try:
                again.resume()
            except InputError as error:
                return f"{error.reason} {error.message}"
            return int(again.step)

        retry.WAITS = (0.01, 0.01)
        read, failures = shards._read_file, [2]

        def fail_twice(*args: Any) -> Any:
            if dist.get_rank() == 1 and failures[0]:
                failures[0] -= 1
                raise OSError(errno.EIO, "Input/output error")
            return read(*args)

        shards._read_file = fail_twice
        found: list[Any] = [resumed(), failures]

        def damage(change: Callable[[Path], Any]) -> None:
            dist.barrier()
            if dist.get_rank() == 0:
                change(tmp_path / f"step-{found[-1]}" / "__1_0.distcp")
            dist.barrier()

        found.append(resumed())
        damage(lambda file: file.write_bytes(file.read_bytes()[:-100]))
        found.append(resumed())
        damage(lambda file: file.write_bytes(bytes(file.stat().st_size)))
        found.append(resumed())
        dist.barrier()
        other = job_spec(data=2, checkpoint=checkpoint, architecture={"layers": 2, "ffnSize": 64})
        found.append(resumed(other))
        found.append([line for line in lines if "trying" in line or "resumed" in line])
        return found

    first, second = run_trainers(spec, shards, work)
    assert first[0] == second[0] == 3
    assert second[1] == [0]
    assert first[2:5] == second[2:5] == [3, 2, 1]
    assert "CheckpointMismatch" in first[5]
    assert "ffnSize is 48 there and 64 here, layers is 4 there and 2 here" in first[5]
    assert "step-3 cannot be read" in first[6][0] and "bytes" in first[6][0]
    assert any("step-2 is damaged" in line for line in first[6])
    assert any("resumed from step 1" in line for line in first[6])
