"""`llmtrain export`, `import`, `sample`: a model goes out, comes back and writes text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain_cli.errors import CliError
from llmtrain_core.api.job import Architecture
from tests.support.command_line import llmtrain

pytestmark = pytest.mark.torch

SHAPE = Architecture(
    layers=2, hidden_size=32, heads=4, kv_heads=2, ffn_size=48, vocab_size=300, sequence_length=16
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from llmtrain_trainer.data.tokenizer import train_bpe
    from llmtrain_trainer.model.decoder import Decoder
    from llmtrain_trainer.weights.huggingface import export

    folder = tmp_path_factory.mktemp("exported")
    tokenizer = folder / "source.json"
    train_bpe(["to be or not to be that is the question"] * 9, 300).save(str(tokenizer))
    torch.manual_seed(3)
    weights = {name: each.detach() for name, each in Decoder(SHAPE).named_parameters()}
    export(lambda names: {name: weights[name] for name in names}, SHAPE, folder, tokenizer)
    return folder


def test_a_model_goes_through_a_checkpoint_and_comes_back_with_the_same_bits(
    exported: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    section = json.loads(llmtrain("import", exported, "--to", tmp_path / "base", "-o", "json"))
    shape = Architecture.from_wire(section["model"]["architecture"])
    assert shape.model_dump() == SHAPE.model_copy(update={"head_dim": 8}).model_dump()
    assert section["model"]["initFrom"] == (tmp_path / "base/step-0").as_uri()
    told = llmtrain(
        "export", section["model"]["initFrom"], "--to", tmp_path / "again", "-o", "json"
    )
    assert json.loads(told)["step"] == 0
    before, after = (
        load_file(each / "model.safetensors") for each in (exported, tmp_path / "again")
    )
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    for name in ("tokenizer.json", "config.json"):
        assert (tmp_path / "again" / name).read_text() == (exported / name).read_text()
    narrow = tmp_path / "narrow"
    llmtrain("export", tmp_path / "base", "--to", narrow, "--dtype", "bfloat16")
    size = (narrow / "model.safetensors").stat().st_size
    assert size < 0.6 * (exported / "model.safetensors").stat().st_size


def test_samples_follow_the_seed_the_temperature_and_top_k(exported: Path, tmp_path: Path) -> None:
    llmtrain("import", exported, "--to", tmp_path / "base")

    def text(folder: Path = exported, **options: Any) -> str:
        options = {"prompt": "to be", "tokens": 24, **options}
        flags = [f"--{name}={value}" for name, value in options.items()]
        return str(json.loads(llmtrain("sample", folder, *flags, "-o", "json"))["text"])

    assert text(seed=1) == text(seed=1) == text(tmp_path / "base", seed=1)
    assert len({text(seed=seed) for seed in range(5)}) == 5
    greedy = text(temperature=0)
    assert greedy == text(temperature=0, seed=9) == text(seed=4, **{"top-k": 1})
    assert text(seed=4) == text(seed=4, **{"top-k": 300})
    assert llmtrain("sample", exported, "--prompt", "to be", "--temperature", 0).startswith("to be")


def test_what_is_no_model_is_named(exported: Path, tmp_path: Path) -> None:
    for arguments in (("sample", tmp_path), ("export", tmp_path, "--to", tmp_path / "out")):
        with pytest.raises(CliError, match="not a complete checkpoint"):
            llmtrain(*arguments)
    with pytest.raises(CliError, match=r"config\.json and the model's safetensors"):
        llmtrain("import", tmp_path, "--to", tmp_path / "out")
    with pytest.raises(CliError, match="nowhere://"):
        llmtrain("export", "nowhere://bucket/x", "--to", tmp_path / "out")
