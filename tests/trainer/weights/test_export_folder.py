"""An export replaces what an export wrote, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.errors import InputError
from llmtrain_trainer.weights.export_folder import (
    EXPORT_MANIFEST,
    begin_export,
    require_exportable,
)
from tests.support.trainer.jobs import job_spec

pytestmark = pytest.mark.unit

OURS = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def _export(folder: Path, *names: str) -> None:
    begin_export(folder, names)
    for name in names:
        (folder / name).write_text("ours")


def test_the_files_of_the_last_export_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    _export(tmp_path, *OURS)
    _export(tmp_path, "config.json", "model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        EXPORT_MANIFEST,
        "model.safetensors",
    ]


def test_an_interrupted_export_is_repeated(tmp_path: Path) -> None:
    begin_export(tmp_path, OURS)
    (tmp_path / OURS[1]).write_text("half")
    _export(tmp_path, "config.json", "model.safetensors")
    assert not (tmp_path / OURS[1]).exists()


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "adapter_model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer_config.json",
    ],
)
def test_files_of_another_model_are_refused_and_kept(name: str, tmp_path: Path) -> None:
    """They were deleted, or were loaded together with the exported model."""
    _export(tmp_path, "config.json")
    (tmp_path / name).write_text("theirs")
    for check in (require_exportable, lambda folder: begin_export(folder, OURS)):
        with pytest.raises(InputError, match=name) as caught:
            check(tmp_path)
        assert caught.value.field == "spec.checkpoint.exportHuggingFace" and caught.value.remedy
    assert (tmp_path / name).read_text() == "theirs"
    assert (tmp_path / "config.json").read_text() == "ours"


@pytest.mark.parametrize("content", ["{", "[]", '{"files": ["../x"]}', '{"files": [1]}'])
def test_a_list_that_no_export_wrote_deletes_nothing(content: str, tmp_path: Path) -> None:
    outside = tmp_path / "x"
    outside.write_text("mine")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / EXPORT_MANIFEST).write_text(content)
    with pytest.raises(InputError, match="is not the list of an export"):
        begin_export(folder, OURS)
    assert outside.read_text() == "mine"
    assert (folder / EXPORT_MANIFEST).read_text() == content


def test_a_job_checks_the_folder_before_it_trains(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from llmtrain_trainer.job_spec import from_spec
    from llmtrain_trainer.launcher.launcher import _require_folders

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("theirs")
    checkpoint = {
        "uri": (tmp_path / "run").as_uri(),
        "everySteps": 1,
        "exportHuggingFace": (tmp_path / "model").as_uri(),
    }
    run = from_spec("test", job_spec(checkpoint=checkpoint))
    pod: Any = SimpleNamespace(ranks=[0])
    with pytest.raises(InputError, match=r"model\.safetensors") as caught:
        _require_folders(run, pod)
    assert caught.value.reason == "ExportNotWritable"
