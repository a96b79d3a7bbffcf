"""Bytes of a checkpoint that are not those that were written are never taken for weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from llmtrain_trainer.checkpoint.corruption import is_corruption
from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata, create_step_folder
from llmtrain_trainer.checkpoint.paths import (
    COMPLETE_MARKER,
    INDEX_FILE,
    METADATA_FILE,
    TOKENIZER,
    folder_from_uri,
)
from llmtrain_trainer.errors import InputError

pytestmark = pytest.mark.torch


def _flip(file: Any, place: int, count: int = 1) -> None:
    content = bytearray(file.read_bytes())
    for index in range(place, place + count):
        content[index] ^= 0x10
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("store", [False, True], ids=["volume", "store"])
def test_every_byte_is_noticed_or_harmless(tmp_path: Path, store: bool) -> None:
    import torch

    from llmtrain_trainer.checkpoint.shards import load_index, read_state, write_state
    from llmtrain_trainer.checkpoint.state import require_intact

    root = folder_from_uri(f"memory://{uuid4().hex}/run" if store else f"file://{tmp_path}")
    metadata = CheckpointMetadata(1, torch.__version__, "", {}, "", 0, None)
    tokenizer = tmp_path / "source.json"
    tokenizer.write_text('{"words": ["a", "b"]}')
    folder = create_step_folder(root, metadata, tokenizer)
    weight = torch.arange(60.0).reshape(6, 10)
    write_state(folder, {"weight": weight, "rate": 0.25}, None)

    def read() -> bool:
        """Tell whether a checkpoint is damaged, after what was read of it was compared."""
        found = {"weight": torch.zeros(6, 10), "rate": 0.0}
        try:
            require_intact(folder)
            read_state(folder, load_index(folder), found)
        except Exception as error:
            assert isinstance(error, InputError) or is_corruption(error), error
            return True
        assert torch.equal(found["weight"], weight)  # type: ignore[arg-type]
        assert found["rate"] == 0.25
        return False

    assert not read()
    for name in (METADATA_FILE, TOKENIZER, INDEX_FILE, "__0_0.distcp"):
        file = folder / name
        whole = file.read_bytes()
        for place in range(0, len(whole), 37):
            _flip(file, place)
            assert read(), (name, place)
            file.write_bytes(whole)
    assert not read()
    # without an index, as in checkpoints of older releases, the marker is read
    (folder / INDEX_FILE).unlink()
    marker = folder / COMPLETE_MARKER
    whole = marker.read_bytes()
    for place in range(0, len(whole), 7):
        _flip(marker, place)
        read()  # the marker also has values that are not used
        marker.write_bytes(whole)
    assert not read()


def test_the_checkpoint_before_it_is_taken_in_any_layout(
    tmp_path: Path, shards: Any, run_trainers: Callable[..., Any], job_spec: Callable[..., Any]
) -> None:
    """Steps 1 and 2 are saved at once and in the background; a weight of the latter is spoilt."""

    def spec(**changes: Any) -> dict[str, Any]:
        checkpoint = {"uri": f"file://{tmp_path}", "everySteps": 1, "keep": 3, "async": True}
        made: dict[str, Any] = job_spec(checkpoint=checkpoint, **changes)
        return made

    def work(trainer: Any) -> list[Any]:
        import torch.distributed as dist

        from llmtrain_trainer.checkpoint.shards import load_index
        from llmtrain_trainer.job_spec import from_spec
        from llmtrain_trainer.training.trainer import Trainer

        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("llmtrain_trainer").addHandler(handler)
        for _ in range(2):
            trainer.take_step()
            trainer.save()
        trainer.wait_for_save()
        if dist.get_rank() == 0:
            folder = tmp_path / "step-2"
            places = load_index(folder).storage_data
            (place,) = (
                place
                for index, place in places.items()
                if index.fqn == "model.layers.1.ffn.up.weight" and index.offset[0] > 0
            )
            _flip(folder / place.relative_path, place.offset + place.length // 2, 40)
        dist.barrier()
        steps = []
        for layout in ({"data": 2}, {"tensor": 2}, {"pipeline": 2}):
            run = from_spec("test", spec(**layout))
            again = Trainer(run, trainer.data, trainer.device, trainer.send)
            again.resume()
            steps.append(again.step)
        run = from_spec("test", job_spec(data=2, init_from=f"file://{tmp_path}/step-2"))
        try:
            Trainer(run, trainer.data, trainer.device, trainer.send).load_initial_weights()
        except InputError as error:
            return [steps, lines, (error.reason, error.field)]
        return [steps, lines, None]

    for steps, lines, refused in run_trainers(spec(data=2), shards, work):
        assert steps == [1, 1, 1]
        assert refused == ("CheckpointUnreadable", "spec.model.initFrom")
        told = [line for line in lines if "step-2 is damaged" in line]
        assert len(told) == 3
        assert all("__1_0.distcp: wrong checksum" in line for line in told)


def test_no_reader_of_weights_takes_them(tmp_path: Path) -> None:
    """`llmtrain export` and `sample` read like this; so do jobs that write safetensors."""
    import torch

    from llmtrain_core.api.job import Architecture
    from llmtrain_trainer.checkpoint.shards import write_state
    from llmtrain_trainer.checkpoint.state import MODEL
    from llmtrain_trainer.model.decoder import Decoder
    from llmtrain_trainer.weights.export import export_checkpoint
    from llmtrain_trainer.weights.sample import load_model

    shape = Architecture(
        layers=1, hidden_size=32, heads=4, ffn_size=48, vocab_size=300, sequence_length=16
    )
    metadata = CheckpointMetadata(1, torch.__version__, "", shape.to_wire(), "", 0, None)
    folder = create_step_folder(tmp_path / "run", metadata)
    write_state(folder, {MODEL: dict(Decoder(shape).named_parameters())}, None)
    export_checkpoint(folder, tmp_path / "whole")
    file = folder / "__0_0.distcp"
    _flip(file, file.stat().st_size // 2)
    for read in (
        lambda: export_checkpoint(folder, tmp_path / "spoilt"),
        lambda: load_model(folder),
    ):
        with pytest.raises(InputError, match="checksum") as caught:
            read()
        assert caught.value.reason == "CheckpointUnreadable"
    assert not (tmp_path / "spoilt" / "config.json").exists()
