"""What is kept, what is deleted, and what is being read meanwhile; on volumes and in stores."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from llmtrain_trainer.checkpoint import retention
from llmtrain_trainer.checkpoint.metadata import (
    CheckpointMetadata,
    create_step_folder,
    latest_complete,
)
from llmtrain_trainer.checkpoint.paths import (
    COMPLETE_MARKER,
    METADATA_FILE,
    Folder,
    complete_steps,
    delete_checkpoint,
    folder_from_uri,
    is_complete,
    list_steps,
    require_writable,
    step_folder,
)
from llmtrain_trainer.errors import InputError

ARCHITECTURE = {"layers": 4}


def _complete(root: Folder, step: int) -> Folder:
    metadata = CheckpointMetadata(step, "2.15.0", "dp1", ARCHITECTURE, "d", 8 * step, 7.5)
    folder = create_step_folder(root, metadata)
    (folder / COMPLETE_MARKER).write_bytes(b"marker")
    return folder


@pytest.fixture(params=["file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "file":
        return folder_from_uri(tmp_path.as_uri())
    return folder_from_uri(f"memory://{uuid4().hex}/run")


@pytest.mark.unit
def test_a_store_keeps_checkpoints_as_a_volume_does(root: Folder) -> None:
    require_writable(root)
    assert latest_complete(root, "2.15.0", ARCHITECTURE) is None
    for step in (2, 9, 10):
        _complete(root, step)
    create_step_folder(root, CheckpointMetadata(11, "2.15.0", "dp1", ARCHITECTURE, "d", 88, None))
    found = latest_complete(root, "2.15.0", ARCHITECTURE)
    assert found is not None and found.step == 10
    (step_folder(root, 10) / METADATA_FILE).write_text("{")
    found = latest_complete(root, "2.15.0", ARCHITECTURE)
    assert found is not None and found.step == 9
    retention.purge(root, keep=1, saved=10)
    assert list_steps(root) == [10, 11]
    _complete(root, 10)
    with pytest.raises(InputError, match="layers is 4 there and 8 here"):
        latest_complete(root, "2.15.0", {"layers": 8})


@pytest.mark.unit
def test_what_was_just_saved_and_what_is_later_stays(root: Folder) -> None:
    """A later one is perhaps damaged: the run went on from before it."""
    for step in (4, 6, 20):
        _complete(root, step)
    retention.purge(root, keep=1, saved=6)
    assert complete_steps(root) == [6, 20]


@pytest.mark.unit
def test_what_is_read_is_deleted_after_the_reader_has_gone(
    root: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        _complete(root, step)
    with retention.read_lease(step_folder(root, 1)) as there:
        assert there
        retention.purge(root, keep=1, saved=3)
        assert complete_steps(root) == [1, 3]
    retention.purge(root, keep=1, saved=3)
    assert complete_steps(root) == [3]

    _complete(root, 1)
    with retention.read_lease(step_folder(root, 1)):
        # killed an hour ago: its lease is still there
        later = time.time() + 2 * retention.LEASE_SECONDS
        monkeypatch.setattr(time, "time", lambda: later)
        retention.purge(root, keep=1, saved=3)
    assert list_steps(root) == [3]


@pytest.mark.unit
def test_readers_and_the_purge_do_not_harm_each_other(tmp_path: Path) -> None:
    """Whoever was told that a checkpoint is there finds all of it until the end."""
    _complete(tmp_path, 10_000)
    ended, harmed, read = threading.Event(), [], [0]

    def readers() -> None:
        while not ended.is_set():
            for step in complete_steps(tmp_path)[:-1]:
                folder = step_folder(tmp_path, step)
                with retention.read_lease(folder) as there:
                    if there:
                        read[0] += 1
                        time.sleep(0.002)
                        if not {COMPLETE_MARKER, METADATA_FILE} <= {
                            p.name for p in folder.iterdir()
                        }:
                            harmed.append(step)

    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(readers) for _ in range(3)]
        try:
            for step in range(10_000):
                if step >= 150 and read[0] > 50:
                    break
                _complete(tmp_path, step)
                time.sleep(0.001)
                retention.purge(tmp_path, 1, 10_000)
        finally:
            ended.set()
        for each in reading:
            each.result()
    assert read[0] > 50 and harmed == []
    retention.purge(tmp_path, 1, 10_000)
    assert complete_steps(tmp_path) == [10_000]


@pytest.mark.unit
def test_a_folder_that_is_deleted_while_one_looks_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, before it is listed: for a reader, and for a purge."""
    looked, purged = _complete(tmp_path, 1), _complete(tmp_path, 2)
    listed = os.listdir

    def after_deleting(path: Path) -> list[str]:
        shutil.rmtree(path)
        return listed(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", after_deleting)
        assert not is_complete(looked)
        retention._delete(purged)
    retention._delete(purged)
    assert complete_steps(tmp_path) == []


@pytest.mark.torch
def test_a_run_in_a_store_goes_on_from_there(
    shards: Any, run_world: Callable[..., list[Any]], job_spec: Callable[..., dict[str, Any]]
) -> None:
    """The store lives in the memory of the one rank."""
    from dataclasses import replace

    import torch

    from llmtrain_trainer.job_spec import from_spec
    from llmtrain_trainer.training.trainer import Trainer

    checkpoint = {"uri": "file:///nowhere", "everySteps": 2, "keep": 2, "async": True}
    run = from_spec("test", job_spec(checkpoint=checkpoint))
    assert run.checkpoint is not None
    uri = "memory://bucket/run"
    there = replace(run, checkpoint=replace(run.checkpoint, uri=uri, export=f"{uri}/model"))

    def train(_: int) -> tuple[list[int], int, bool, float, float]:
        from llmtrain_trainer.weights.export import export_checkpoint

        whole = Trainer(there, shards, torch.device("cpu"), lambda _: None)
        whole.train()
        root = folder_from_uri(uri)
        saved = complete_steps(root)
        delete_checkpoint(step_folder(root, 6))
        again = Trainer(there, shards, torch.device("cpu"), lambda _: None)
        again.resume()
        start = again.step
        while again.step < 6:
            again.take_step()
        export_checkpoint(root, folder_from_uri(f"{uri}/again"))
        exported = (root / "model" / "model.safetensors").is_file()
        return saved, start, exported, whole.evaluate(), again.evaluate()

    ((saved, start, exported, before, after),) = run_world(1, train)
    assert (saved, start, exported) == ([4, 6], 4, True)
    assert before == after
