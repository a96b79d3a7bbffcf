"""A base model of a stranger, in the format of Hugging Face: no code, and errors that name it."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.errors import InputError
from tests.support.trainer.checkpoints import RunsCommand, write_checkpoint

pytestmark = pytest.mark.torch

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from llmtrain_trainer.weights.export import export_checkpoint

    root = tmp_path_factory.mktemp("model")
    export_checkpoint(write_checkpoint(root / "run"), root / "exported")
    return root / "exported"


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(pristine, tmp_path / "model"))


def _config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], None]:
    def edit(folder: Path, ran: Path) -> None:
        wire = json.loads((folder / CONFIG).read_text())
        change(wire)
        (folder / CONFIG).write_text(json.dumps(wire))

    return edit


def _pickled_weights(folder: Path, ran: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(RunsCommand(ran)))


def _pickle_named_safetensors(folder: Path, ran: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(RunsCommand(ran)))


def _weights_elsewhere(folder: Path, ran: Path) -> None:
    names = json.dumps({"weight_map": {"lm_head.weight": "../../../etc/passwd"}})
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(names)


def _pipe(folder: Path, ran: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def _device(folder: Path, ran: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to("/dev/zero")


def _header(folder: Path, ran: Path) -> None:
    """A header that claims a tensor of a petabyte."""
    wire = {"lm_head.weight": {"dtype": "F32", "shape": [1 << 48], "data_offsets": [0, 1 << 50]}}
    text = json.dumps(wire).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)


ATTACKS: dict[str, Callable[[Path, Path], None]] = {
    "pickled weights": _pickled_weights,
    "pickle as safetensors": _pickle_named_safetensors,
    "weights elsewhere": _weights_elsewhere,
    "pipe": _pipe,
    "huge header": _header,
    "deep configuration": lambda folder, _: _write(folder, "[" * 100_000),
    "long number": lambda folder, _: _write(folder, "9" * 5_000),
    "configuration is a list": lambda folder, _: _write(folder, "[]"),
    "wrong type": _config(lambda wire: wire.update(hidden_size="many")),
    "huge model": _config(lambda wire: wire.update(num_hidden_layers=10**9)),
}


def _write(folder: Path, content: str) -> None:
    (folder / CONFIG).write_text(content)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_model_runs_no_command_and_is_named(
    name: str, model: Path, tmp_path: Path
) -> None:
    from llmtrain_trainer.weights.load import import_checkpoint
    from llmtrain_trainer.weights.sample import load_model

    ran = tmp_path / "ran"
    ATTACKS[name](model, ran)
    for read in (lambda: load_model(model), lambda: import_checkpoint(model, tmp_path / "to")):
        with pytest.raises(InputError) as caught:
            read()
        assert str(model) in caught.value.message
        assert len(caught.value.message) < 1_000
    assert not ran.exists()


def test_a_device_is_no_model(model: Path, tmp_path: Path) -> None:
    from llmtrain_trainer.weights.load import import_checkpoint

    _device(model, tmp_path)
    with pytest.raises(InputError, match="not a file"):
        import_checkpoint(model, tmp_path / "to")


def test_code_that_a_model_brings_is_not_run(model: Path, tmp_path: Path) -> None:
    """`auto_map` names Python files of the model, which other tools import."""
    from llmtrain_trainer.weights.sample import load_model

    ran = tmp_path / "ran"
    (model / "modeling.py").write_text(f"import os\nos.system('touch {ran}')\n")
    _config(lambda wire: wire.update(auto_map={"AutoConfig": "modeling.Config"}))(model, ran)
    load_model(model)
    assert not ran.exists()
