"""A checkpoint of a stranger is data: reading it never runs a command, and the error names it."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmtrain_cli.errors import CliError
from llmtrain_cli.main import app
from llmtrain_trainer.checkpoint.paths import (
    COMPLETE_MARKER,
    INDEX_FILE,
    METADATA_FILE,
    TOKENIZER,
)
from llmtrain_trainer.errors import InputError
from tests.support.trainer.checkpoints import (
    SHARD,
    RunsCommand,
    edit_index,
    edit_marker,
    replace_entry,
    write_as_older_release,
    write_checkpoint,
    write_index_lines,
)
from tests.support.trainer.jobs import job_spec, random_shards
from tests.support.trainer.ranks import parameter_hash, run_trainers

pytestmark = pytest.mark.torch

Attack = Callable[[Path, Path], Any]


def _root_is_a_command(folder: Path, ran: Path) -> None:
    edit_marker(folder, lambda _: RunsCommand(ran))


def _command_in_a_path(folder: Path, ran: Path) -> None:
    edit_marker(folder, lambda metadata: metadata.planner_data.update(x=RunsCommand(ran)))


def _command_in_a_place(folder: Path, ran: Path) -> None:
    def change(metadata: Any) -> None:
        next(iter(metadata.storage_data.values())).relative_path = RunsCommand(ran)

    edit_marker(folder, change)


def _old_protocol(folder: Path, ran: Path) -> None:
    (folder / INDEX_FILE).unlink()
    (folder / COMPLETE_MARKER).write_bytes(pickle.dumps(RunsCommand(ran), protocol=0))


def _command_in_a_tensor(folder: Path, ran: Path) -> None:
    replace_entry(folder, RunsCommand(ran))


def _command_in_an_old_tensor(folder: Path, ran: Path) -> None:
    replace_entry(folder, RunsCommand(ran), legacy=True)


def _command_in_a_value(folder: Path, ran: Path) -> None:
    """torch's own planner reads what is no tensor as a pickle."""
    replace_entry(folder, RunsCommand(ran))

    def change(wire: dict[str, Any]) -> None:
        for name, tensor in wire["tensors"].items():
            wire["values"][name] = tensor["chunks"][0][2:]
        wire["tensors"].clear()

    edit_index(folder, change)


COMMANDS: dict[str, tuple[Attack, str]] = {
    "root": (_root_is_a_command, COMPLETE_MARKER),
    "path": (_command_in_a_path, COMPLETE_MARKER),
    "place": (_command_in_a_place, COMPLETE_MARKER),
    "protocol 0": (_old_protocol, COMPLETE_MARKER),
    "tensor": (_command_in_a_tensor, SHARD),
    "old tensor": (_command_in_an_old_tensor, SHARD),
    "value": (_command_in_a_value, "tok_embeddings"),
}
"""Attacks, and what the error names: the file, or the tensor in its folder."""


def _link_to(target: str, name: str) -> Attack:
    def attack(folder: Path, ran: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return attack


def _shard_is(name: str) -> Attack:
    return lambda folder, ran: edit_index(folder, lambda wire: wire.update(shards=[name]))


def _first(change: Callable[[Any], Any]) -> Attack:
    def attack(folder: Path, ran: Path) -> None:
        edit_index(folder, lambda wire: change(next(iter(wire["tensors"].values()))))

    return attack


def _facts(text: str, name: str = METADATA_FILE) -> Attack:
    return lambda folder, ran: (folder / name).write_text(text)


def _field(**fields: Any) -> Attack:
    def attack(folder: Path, ran: Path) -> None:
        path = folder / METADATA_FILE
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return attack


def _repetitions(folder: Path, ran: Path) -> None:
    """A tuple of tuples of tuples: the hash and the text of it take forever."""
    deep: Any = ("x", "x")
    for _ in range(80):
        deep = (deep, deep)
    edit_marker(folder, lambda metadata: metadata.planner_data.update({"x": deep}))


def _far_memo(folder: Path, ran: Path) -> None:
    """Python's own reader of pickles allocates 34 GB for this."""
    (folder / INDEX_FILE).unlink()
    (folder / COMPLETE_MARKER).write_bytes(b"\x80\x04Nr\xff\xff\xff\x7f.")


DEEP, LONG = "[" * 100_000, "9" * 5_000

HARMFUL: dict[str, tuple[Attack, str]] = {
    "endless index": (_link_to("/dev/zero", INDEX_FILE), INDEX_FILE),
    "endless facts": (_link_to("/dev/zero", METADATA_FILE), METADATA_FILE),
    "endless tokenizer": (_link_to("/dev/zero", TOKENIZER), TOKENIZER),
    "endless shard": (_link_to("/dev/zero", SHARD), SHARD),
    "shard above": (_shard_is("../../source.json"), INDEX_FILE),
    "shard elsewhere": (_shard_is("/etc/passwd"), INDEX_FILE),
    "huge tensor": (_first(lambda t: t.update(size=[1 << 40, 1 << 20])), INDEX_FILE),
    "huge part": (_first(lambda t: t["chunks"][0].__setitem__(1, [1 << 40])), INDEX_FILE),
    "no parts": (_first(lambda t: t.update(chunks=[])), INDEX_FILE),
    "negative place": (_first(lambda t: t["chunks"][0].__setitem__(3, -5)), INDEX_FILE),
    "unknown type": (_first(lambda t: t.update(dtype="Tensor")), INDEX_FILE),
    "deep index": (lambda f, _: write_index_lines(f, DEEP.encode()), INDEX_FILE),
    "long number": (lambda f, _: write_index_lines(f, LONG.encode()), INDEX_FILE),
    "index is a list": (lambda f, _: write_index_lines(f, b"[]"), INDEX_FILE),
    "repetitions": (_repetitions, COMPLETE_MARKER),
    "far memo": (_far_memo, COMPLETE_MARKER),
    "deep facts": (_facts(DEEP), METADATA_FILE),
    "long number in facts": (_facts(LONG), METADATA_FILE),
    "wrong type": (_field(step="1", torch=5), METADATA_FILE),
    "wrong architecture": (_field(architecture={"layers": "many"}), METADATA_FILE),
    "huge architecture": (_field(architecture={"layers": 10**9}), METADATA_FILE),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(pristine, tmp_path / "run" / "step-1"))


def _readers(folder: Path) -> list[Callable[[], Any]]:
    from llmtrain_trainer.checkpoint.state import load_weights, require_intact
    from llmtrain_trainer.model.decoder import Decoder
    from llmtrain_trainer.weights.export import export_checkpoint
    from llmtrain_trainer.weights.reading import find_checkpoint, saved_architecture
    from llmtrain_trainer.weights.sample import load_model

    def load_in_rank() -> None:
        """As a rank loads `model.initFrom`."""
        _, metadata = find_checkpoint(folder, "spec.model.initFrom")
        require_intact(folder, "spec.model.initFrom")
        load_weights(folder, Decoder(saved_architecture(folder, metadata)))

    return [
        lambda: load_model(folder),
        lambda: export_checkpoint(folder, folder.parent / "exported"),
        load_in_rank,
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_reader_runs_a_command_and_the_error_names_the_file(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    from llmtrain_trainer.checkpoint.corruption import is_corruption

    attack, named = COMMANDS[name]
    ran = tmp_path / "ran"
    attack(checkpoint, ran)
    for read in _readers(checkpoint):
        with pytest.raises(Exception) as caught:
            read()
        assert isinstance(caught.value, InputError) or is_corruption(caught.value)
        assert named in str(caught.value), caught.value
        assert not ran.exists()


@pytest.mark.parametrize("name", HARMFUL)
def test_hostile_facts_cost_neither_time_nor_memory(name: str, checkpoint: Path) -> None:
    """Memory is bounded by the suite's own limit: most of these would take all of it."""
    from llmtrain_trainer.weights.sample import load_model

    attack, named = HARMFUL[name]
    attack(checkpoint, checkpoint)
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        load_model(checkpoint)
    assert named in caught.value.message, caught.value.message
    assert len(caught.value.message) < 1000
    assert time.process_time() - start < 5


def test_a_pipe_in_the_place_of_a_file_does_not_hang_the_reader(checkpoint: Path) -> None:
    from llmtrain_trainer.weights.sample import load_model

    (checkpoint / METADATA_FILE).unlink()
    os.mkfifo(checkpoint / METADATA_FILE)
    with pytest.raises(InputError, match="is not a file"):
        load_model(checkpoint)


def test_the_commands_of_a_user_end_with_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    _root_is_a_command(checkpoint, ran)
    for arguments in (["sample", str(checkpoint)], ["export", str(checkpoint), "--to", "x"]):
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, CliError), result.output
        assert COMPLETE_MARKER in str(result.exception)
        assert not ran.exists()


@pytest.mark.parametrize("by_name", [False, True], ids=["Python 3.11.7", "Python 3.11.2"])
def test_a_checkpoint_of_an_older_release_loads(
    by_name: bool, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases of Python pickle a member of an enumeration by its value or by its name."""
    import shutil

    import torch
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

    from llmtrain_trainer.checkpoint.state import MODEL
    from llmtrain_trainer.weights.sample import load_model

    expected, _ = load_model(pristine)
    old = tmp_path / "step-1"
    old.mkdir()

    def reduce(member: Any, _protocol: int) -> Any:
        return (
            (getattr, (type(member), member.name)) if by_name else (type(member), (member.value,))
        )

    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", reduce)
    for name in (METADATA_FILE, TOKENIZER):
        shutil.copyfile(pristine / name, old / name)
    weights = {name: each.detach() for name, each in expected.named_parameters()}
    write_as_older_release(old, {MODEL: weights, "rate": 0.25})
    assert not (old / INDEX_FILE).exists()
    found, _ = load_model(old)
    for name, weight in found.named_parameters():
        assert torch.equal(weight, weights[name]), name


def test_an_old_checkpoint_without_its_checksum_is_refused(checkpoint: Path) -> None:
    from llmtrain_trainer.weights.sample import load_model

    edit_marker(checkpoint, lambda metadata: setattr(metadata, "crc32", 5))
    with pytest.raises(InputError, match="checksum"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    "layout", [{"tensor": 2, "pipeline": 2}, {"data": 2, "replicate": 2}], ids=str
)
def test_no_rank_reads_a_pickle_of_another_rank_or_of_a_file(
    layout: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, save, evaluate, and resume from checkpoints with and without an index."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    (tmp_path / "shards").mkdir()
    spec = job_spec(
        **layout,
        checkpoint={"uri": f"file://{tmp_path}/run", "everySteps": 1, "keep": 3},
    )

    def train(trainer: Any) -> list[Any]:
        import sys

        import torch.distributed as dist
        from torch.distributed import distributed_c10d

        from llmtrain_trainer.training.trainer import Trainer

        read: list[str] = []

        def watch(event: str, arguments: Any) -> None:
            if event == "pickle.find_class":
                read.append(str(arguments))

        def refuse(*_: Any) -> Any:
            read.append("a collective of objects")
            raise RuntimeError("a collective of objects")

        sys.addaudithook(watch)
        distributed_c10d._object_to_tensor = refuse  # type: ignore[assignment]
        distributed_c10d._tensor_to_object = refuse  # type: ignore[assignment]
        trainer.resume()
        trainer.take_step()
        trainer.save()
        trainer.wait_for_save()
        expected = parameter_hash(trainer)
        trainer.evaluate()
        found = []
        for old in (False, True):
            dist.barrier()
            if old and dist.get_rank() == 0:
                (tmp_path / "run" / "step-1" / INDEX_FILE).unlink()
            dist.barrier()
            again = Trainer(trainer.run, trainer.data, trainer.device, trainer.send)
            again.resume()
            found.append((again.step, parameter_hash(again) == expected))
        return [read, found]

    for read, found in run_trainers(spec, random_shards(tmp_path / "shards"), train):
        assert read == []
        assert found == [(1, True)] * 2


def test_a_rank_that_starts_from_a_hostile_base_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`model.initFrom` in a real rank, whose job has the architecture of the base."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    (tmp_path / "shards").mkdir()
    ran, root = tmp_path / "ran", tmp_path / "run"

    def train(trainer: Any) -> tuple[str, str | None, str]:
        from llmtrain_trainer.job_spec import from_spec
        from llmtrain_trainer.training.trainer import Trainer

        trainer.take_step()
        trainer.save()
        _root_is_a_command(root / "step-1", ran)
        run = from_spec("test", job_spec(init_from=f"file://{root}"))
        again = Trainer(run, trainer.data, trainer.device, trainer.send)
        try:
            again.load_initial_weights()
        except InputError as error:
            return error.reason, error.field, error.message
        raise AssertionError("it started")

    spec = job_spec(checkpoint={"uri": f"file://{root}", "everySteps": 1, "keep": 3})
    ((reason, field, message),) = run_trainers(spec, random_shards(tmp_path / "shards"), train)
    assert (reason, field) == ("CheckpointUnreadable", "spec.model.initFrom")
    assert f"{root}/step-1" in message and COMPLETE_MARKER in message
    assert not ran.exists()
