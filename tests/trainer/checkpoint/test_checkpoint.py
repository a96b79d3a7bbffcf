"""Stopping and going on changes nothing; a folder that cannot be used says so."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.checkpoint import retention
from llmtrain_trainer.checkpoint.corruption import RankError, RankFailuresError, is_corruption
from llmtrain_trainer.checkpoint.metadata import (
    CheckpointMetadata,
    create_step_folder,
    latest_complete,
)
from llmtrain_trainer.checkpoint.paths import (
    COMPLETE_MARKER,
    INDEX_FILE,
    METADATA_FILE,
    complete_steps,
    folder_from_uri,
    require_writable,
    step_folder,
)
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError


def _checkpoint(folder: Path) -> dict[str, Any]:
    return {"uri": f"file://{folder}", "everySteps": 3, "keep": 4}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        ({"tensor": 2, "pipeline": 2, "data": 2}, "float32"),
        ({"tensor": 2}, "bfloat16"),
    ],
    ids=["3D float32", "tensor bfloat16"],
)
def test_resumed_run_ends_with_the_same_bits(
    layout: dict[str, int],
    precision: str,
    tmp_path: Path,
    shards: Any,
    run_trainers: Callable[..., Any],
    job_spec: Callable[..., Any],
    parameter_hash: Callable[[Any], str],
) -> None:
    spec = job_spec(**layout, precision=precision, checkpoint=_checkpoint(tmp_path))

    def train(trainer: Any) -> tuple[str, int]:
        trainer.resume()
        first = trainer.step
        while trainer.step < trainer.run.steps:
            trainer.take_step()
            if trainer.step % 3 == 0:
                trainer.save()
        return parameter_hash(trainer), first

    whole = run_trainers(spec, shards, train)
    assert {first for _, first in whole} == {0}
    assert complete_steps(tmp_path) == [3, 6]
    shutil.rmtree(tmp_path / "step-6")
    resumed = run_trainers(spec, shards, train)
    assert {first for _, first in resumed} == {3}
    assert [digest for digest, _ in resumed] == [digest for digest, _ in whole]
    metadata = json.loads((tmp_path / "step-3" / METADATA_FILE).read_text())
    assert metadata["sequences"] == 3 * 8
    assert metadata["torch"].startswith("2.")


@pytest.mark.torch
def test_a_checkpoint_of_one_layout_goes_on_in_another(
    tmp_path: Path, shards: Any, run_trainers: Callable[..., Any], job_spec: Callable[..., Any]
) -> None:
    def save(trainer: Any) -> list[float]:
        for _ in range(3):
            trainer.take_step()
        trainer.save()
        return [trainer.take_step().loss for _ in range(3)]

    def go_on(trainer: Any) -> list[float]:
        trainer.resume()
        return [trainer.take_step().loss for _ in range(3)]

    saved = job_spec(pipeline=2, data=2, checkpoint=_checkpoint(tmp_path))
    other = job_spec(tensor=2, checkpoint=_checkpoint(tmp_path))
    expected = run_trainers(saved, shards, save)[0]
    assert run_trainers(other, shards, go_on)[0] == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.torch
def test_a_damaged_checkpoint_names_its_field_and_a_good_one_remembers_the_first_loss(
    tmp_path: Path, shards: Any, run_trainers: Callable[..., Any], job_spec: Callable[..., Any]
) -> None:
    spec = job_spec(checkpoint=_checkpoint(tmp_path), training={"steps": 4})

    def train(trainer: Any) -> float:
        trainer.train()
        return trainer.held_out_before.loss  # type: ignore[no-any-return]

    first = run_trainers(spec, shards, train)
    shutil.rmtree(tmp_path / "step-4")
    assert run_trainers(spec, shards, train) == first
    for step in (3, 4):
        (tmp_path / f"step-{step}" / INDEX_FILE).write_bytes(b"damaged")
    assert run_trainers(spec, shards, _refusal) == [("CheckpointUnreadable", "spec.checkpoint.uri")]


def _refusal(trainer: Any) -> tuple[str, str | None]:
    """Return reason and field of what keeps a trainer from resuming."""
    try:
        trainer.resume()
    except InputError as error:
        assert error.remedy and "delete" not in error.remedy
        return error.reason, error.field
    except Exception as error:
        return type(error).__name__, None
    raise AssertionError("resumed")


@pytest.mark.torch
def test_only_damage_is_called_damage(
    tmp_path: Path, shards: Any, run_trainers: Callable[..., Any], job_spec: Callable[..., Any]
) -> None:
    spec = job_spec(data=2, checkpoint=_checkpoint(tmp_path))
    shard = tmp_path / "step-0" / "__1_0.distcp"

    def save(trainer: Any) -> None:
        trainer.saved_step = -1
        trainer.save()

    def with_failing_reads(trainer: Any) -> tuple[str, str | None]:
        """A file system that does not answer, seen by one rank."""
        from llmtrain_trainer.checkpoint import retry, shards

        def fail(*_: Any) -> Any:
            raise OSError(errno.EIO, "Input/output error")

        retry.WAITS = (0.01, 0.01)
        if trainer.grid.coordinate("data") == 1:
            shards._read_file = fail
        return _refusal(trainer)

    run_trainers(spec, shards, save)
    assert run_trainers(spec, shards, with_failing_reads) == [("RankFailuresError", None)] * 2
    damaged = [("CheckpointUnreadable", "spec.checkpoint.uri")] * 2
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert run_trainers(spec, shards, _refusal) == damaged
    shard.unlink()
    assert run_trainers(spec, shards, _refusal) == damaged


@pytest.mark.torch
def test_a_checkpoint_of_other_data_is_refused(
    tmp_path: Path, shards: Any, run_trainers: Callable[..., Any], job_spec: Callable[..., Any]
) -> None:
    from dataclasses import replace

    spec = job_spec(checkpoint=_checkpoint(tmp_path), training={"steps": 1})
    run_trainers(spec, shards, lambda trainer: trainer.train())
    refused = run_trainers(spec, replace(shards, digest="other"), _refusal)
    assert refused == [("CheckpointMismatch", "spec.checkpoint.uri")]


@pytest.mark.torch
def test_no_rank_writes_into_a_folder_before_it_was_emptied(
    tmp_path: Path, shards: Any, run_trainers: Callable[..., Any], job_spec: Callable[..., Any]
) -> None:
    spec = job_spec(data=2, checkpoint=_checkpoint(tmp_path))

    def save(trainer: Any) -> bool:
        from llmtrain_trainer.checkpoint import saver

        untouched, write = True, saver.create_step_folder

        def late(root: Any, metadata: CheckpointMetadata, tokenizer: Any) -> Any:
            nonlocal untouched
            time.sleep(1)
            untouched = not step_folder(root, metadata.step).exists()
            return write(root, metadata, tokenizer)

        saver.create_step_folder = late
        trainer.take_step()
        trainer.save()
        return untouched

    assert run_trainers(spec, shards, save) == [True, True]


ARCHITECTURE = {"layers": 4}


def _complete(root: Path, step: int, **changes: Any) -> None:
    metadata = {
        "step": step,
        "torch": "2.15.0",
        "layout": "dp1",
        "architecture": ARCHITECTURE,
        "data": "d",
        "sequences": 8 * step,
        "held_out_before": 7.5,
        **changes,
    }
    create_step_folder(root, CheckpointMetadata(**metadata))
    (root / f"step-{step}" / COMPLETE_MARKER).touch()


def _gathered(*failures: BaseException) -> BaseException:
    error = RuntimeError("load")
    error.failures = {i: (f, None) for i, f in enumerate(failures)}  # type: ignore[attr-defined]
    return error


@pytest.mark.unit
@pytest.mark.parametrize(
    ("error", "damaged"),
    [
        (DamagedFileError("bad"), True),
        (RankFailuresError({1: RankError.of(DamagedFileError("bad"))}), True),
        (RankFailuresError({1: RankError.of(OSError(errno.EIO, "no answer"))}), False),
        (
            RankFailuresError(
                {0: RankError.of(EOFError()), 1: RankError.of(MemoryError())},
            ),
            False,
        ),
        (_gathered(EOFError()), True),
        (_gathered(FileNotFoundError(2, "gone")), True),
        (RuntimeError("Missing key in checkpoint state_dict: a"), True),
        (ValueError("Size mismatch between saved 1 and current: 2 for a"), True),
        (RuntimeError("PytorchStreamReader failed reading zip archive"), True),
        (MemoryError(), False),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), False),
        (OSError(errno.ESTALE, "Stale file handle"), False),
        (_gathered(EOFError(), OSError(errno.EIO, "Input/output error")), False),
        (_gathered(EOFError(), RuntimeError("Connection closed by peer")), False),
        (TypeError("a bug"), False),
    ],
)
def test_what_shows_damage(error: BaseException, damaged: bool) -> None:
    assert is_corruption(error) is damaged


@pytest.mark.unit
def test_a_folder_that_cannot_be_emptied_loses_its_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _complete(tmp_path, 5)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    metadata = CheckpointMetadata(5, "2.15.0", "dp2", ARCHITECTURE, "d", 40, None)
    assert create_step_folder(tmp_path, metadata).is_dir()
    assert complete_steps(tmp_path) == []


@pytest.mark.unit
def test_facts_that_are_no_json_or_only_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _complete(tmp_path, 5)
    (tmp_path / "step-5" / METADATA_FILE).write_text("{")
    with pytest.raises(InputError, match=r"step-5 cannot be read: llmtrain\.json") as caught:
        latest_complete(tmp_path, "2.15.0", ARCHITECTURE)
    assert "aside" in (caught.value.remedy or "")

    def fail(*_: Any) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError, match="Stale"):
        latest_complete(tmp_path, "2.15.0", ARCHITECTURE)


@pytest.mark.unit
def test_the_newest_complete_checkpoint_counts(tmp_path: Path) -> None:
    assert latest_complete(tmp_path, "2.15.0", ARCHITECTURE) is None
    _complete(tmp_path, 9)
    _complete(tmp_path, 10)
    create_step_folder(
        tmp_path, CheckpointMetadata(11, "2.15.0", "dp1", ARCHITECTURE, "d", 88, None)
    )  # no marker: its writer was killed
    (tmp_path / "step-12x").mkdir()
    newest = latest_complete(tmp_path, "2.15.0+cu132", ARCHITECTURE)
    assert newest is not None and newest.step == 10


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changes", "reason", "text"),
    [
        ({"torch": "2.16.1"}, "CheckpointUnreadable", "torch 2.16.1"),
        ({"architecture": {"layers": 8}}, "CheckpointMismatch", "another architecture"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_refused(
    changes: dict[str, Any], reason: str, text: str, tmp_path: Path
) -> None:
    _complete(tmp_path, 5, **changes)
    with pytest.raises(InputError, match=text) as caught:
        latest_complete(tmp_path, "2.15.0", ARCHITECTURE)
    assert caught.value.reason == reason
    assert caught.value.field == "spec.checkpoint.uri"


@pytest.mark.unit
def test_purge_keeps_the_newest_and_what_is_being_written(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        _complete(tmp_path, step)
    metadata = CheckpointMetadata(0, "2.15.0", "dp1", ARCHITECTURE, "d", 0, 7.5)
    create_step_folder(tmp_path, metadata)  # left behind incomplete
    (tmp_path / "step-5").mkdir()  # being written
    (tmp_path / "notes").mkdir()
    retention.purge(tmp_path, keep=2, saved=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes",
        "step-3",
        "step-4",
        "step-5",
    ]


@pytest.mark.unit
def test_only_folders_of_known_stores_are_accepted(tmp_path: Path) -> None:
    assert folder_from_uri("file:///a%20b") == Path("/a b")
    for uri in ("nope://bucket/x", "file://host/x", "relative", "file://", "s3:///x"):
        with pytest.raises(InputError) as caught:
            folder_from_uri(uri)
        assert caught.value.field == "spec.checkpoint.uri"
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as caught:
        require_writable(tmp_path / "file" / "below")
    assert caught.value.reason == "CheckpointUnreadable"
