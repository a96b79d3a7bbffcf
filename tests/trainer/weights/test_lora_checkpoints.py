"""Adapters are read with the base that they were trained on, or the message says what to name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.errors import InputError
from tests.support.trainer.adapters import LORA, TARGETS, base_record, write_adapters
from tests.support.trainer.checkpoints import SHAPE, write_checkpoint

pytestmark = pytest.mark.torch


def test_adapters_export_and_sample_as_the_merged_model(tmp_path: Path) -> None:
    """A later step of the base job is not their base."""
    import torch

    from llmtrain_trainer.weights.export import export_checkpoint
    from llmtrain_trainer.weights.huggingface import weights_of_huggingface
    from llmtrain_trainer.weights.reading import weight_shapes, weights_of_checkpoint
    from llmtrain_trainer.weights.sample import load_model

    base = write_checkpoint(tmp_path / "base")
    record = base_record(tmp_path / "base")
    assert record["step"] == 1
    _, change = write_adapters(tmp_path / "tuned", record)
    shutil.copytree(base, tmp_path / "base" / "step-7")
    names = list(weight_shapes(SHAPE))
    expected = dict(weights_of_checkpoint(base, SHAPE)(names))
    for name, added in change.items():
        expected[name] = expected[name] + added
    export_checkpoint(tmp_path / "tuned", tmp_path / "out")
    found = weights_of_huggingface(tmp_path / "out")[1](names)
    assert all(torch.equal(found[name], expected[name]) for name in names)
    model, _ = load_model(tmp_path / "tuned", base)
    assert torch.equal(
        dict(model.named_parameters())["layers.0.ffn.down.weight"],
        found["layers.0.ffn.down.weight"],
    )


def test_adapters_go_out_in_the_format_of_peft_and_come_back_merged(tmp_path: Path) -> None:
    import json

    import torch
    from safetensors.torch import load_file

    from llmtrain_trainer.weights.export import export_checkpoint
    from llmtrain_trainer.weights.load import import_checkpoint
    from llmtrain_trainer.weights.peft import CONFIG, WEIGHTS, export_adapters
    from llmtrain_trainer.weights.reading import weight_shapes, weights_of_checkpoint

    base = write_checkpoint(tmp_path / "base")
    _, change = write_adapters(tmp_path / "tuned", base_record(tmp_path / "base"))
    out = tmp_path / "out"
    export_adapters(tmp_path / "tuned", out)
    config = json.loads((out / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 6.0)
    assert config["target_modules"] == LORA["targets"]
    tensors = load_file(out / WEIGHTS)
    module = "base_model.model.model.layers.0.mlp.down_proj"
    assert len(tensors) == 2 * len(TARGETS)
    assert tensors[f"{module}.lora_A.weight"].shape == (2, 48)
    assert tensors[f"{module}.lora_B.weight"].shape == (32, 2)
    assert (out / "tokenizer.json").is_file()

    export_checkpoint(base, tmp_path / "model")
    with pytest.raises(InputError, match="holds adapters only"):
        import_checkpoint(out, tmp_path / "none")
    folder, shape = import_checkpoint(out, tmp_path / "again", tmp_path / "model")
    names = list(weight_shapes(shape))
    found = weights_of_checkpoint(folder, shape)(names)
    expected = weights_of_checkpoint(base, SHAPE)(names)
    for name in names:
        assert torch.equal(found[name], expected[name] + change.get(name, 0))
    for changes in (
        {"use_dora": True},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 4}},
        {"init_lora_weights": "pissa_niter_4"},
        {"alora_invocation_tokens": [1]},
        {"layer_replication": [[0, 1], [0, 1]]},
    ):
        (out / CONFIG).write_text(json.dumps({**config, **changes}))
        with pytest.raises(InputError, match=next(iter(changes))) as caught:
            import_checkpoint(out, tmp_path / "no", tmp_path / "model")
        assert caught.value.reason == "ImportUnsupported"


@pytest.mark.parametrize(
    ("changes", "tensors", "problem"),
    [
        ({"r": 4}, {}, "for rank 4"),
        ({"lora_alpha": float("inf")}, {}, "lora_alpha is inf"),
        ({}, None, "is empty"),
        ({}, {"model.layers.0.self_attn.q_proj.lora_A": (2, 16)}, "a weight of [32, 32]"),
        ({}, {"model.layers.0.self_attn.q_proj.lora_A": (3, 32)}, "shapes [3, 32] and [32, 2]"),
        ({}, {"model.layers.0.self_attn.q_proj.lora_A": (2,)}, "shapes [2]"),
        ({}, {"model.norm.lora_A": (2, 32), "model.norm.lora_B": (32, 2)}, "a weight of [32]"),
        ({}, {"model.layers.0.mlp.up_proj.lora_A": (2, 32)}, "has only one of two matrices"),
        ({}, {"model.layers.70.mlp.up_proj.lora_A": (2, 32)}, "no weight for base_model.model"),
    ],
)
def test_adapters_of_another_model_are_refused(
    changes: dict[str, Any],
    tensors: dict[str, tuple[int, ...]] | None,
    problem: str,
    tmp_path: Path,
) -> None:
    import json

    import torch
    from safetensors.torch import load_file, save_file

    from llmtrain_trainer.weights.export import export_checkpoint
    from llmtrain_trainer.weights.load import import_checkpoint
    from llmtrain_trainer.weights.peft import CONFIG, PREFIX, WEIGHTS, export_adapters

    base = write_checkpoint(tmp_path / "base")
    write_adapters(tmp_path / "tuned", base_record(tmp_path / "base"))
    out = tmp_path / "out"
    export_adapters(tmp_path / "tuned", out)
    export_checkpoint(base, tmp_path / "model")
    config = json.loads((out / CONFIG).read_text())
    (out / CONFIG).write_text(json.dumps({**config, **changes}))
    added = {f"{PREFIX}{name}.weight": torch.ones(size) for name, size in (tensors or {}).items()}
    stored = {} if tensors is None else {**load_file(out / WEIGHTS), **added}
    save_file(stored, out / WEIGHTS)
    with pytest.raises(InputError) as caught:
        import_checkpoint(out, tmp_path / "new", tmp_path / "model")
    assert problem in caught.value.message and caught.value.remedy
    assert not (tmp_path / "new").exists()


def _refused(root: Path, base: Path | None = None) -> str:
    from llmtrain_trainer.weights.sample import load_model

    with pytest.raises(InputError) as caught:
        load_model(root, base)
    assert "holds adapters only" in caught.value.message
    assert "--base" in (caught.value.remedy or "")
    assert "damaged" not in caught.value.message
    return caught.value.message


def test_another_base_or_none_is_refused(tmp_path: Path) -> None:
    import torch

    from llmtrain_trainer.checkpoint.init_from import base_checkpoint

    write_checkpoint(tmp_path / "base")
    record = base_record(tmp_path / "base")
    write_adapters(tmp_path / "unknown", None)
    assert "does not record its base" in _refused(tmp_path / "unknown")
    other = {**record, "digest": "0" * 32}
    write_adapters(tmp_path / "other", other)
    assert "has other weights" in _refused(tmp_path / "other")
    # a job that goes on from such adapters is refused, too
    with pytest.raises(InputError) as caught:
        uri = (tmp_path / "base").as_uri()
        base_checkpoint(uri, torch.__version__, SHAPE.to_wire(), other)
    assert (caught.value.reason, caught.value.field) == (
        "CheckpointMismatch",
        "spec.model.initFrom",
    )
    write_adapters(tmp_path / "tuned", record)
    shutil.move(tmp_path / "base" / "step-1", tmp_path / "base" / "step-2")
    assert "step-1 is not a complete checkpoint" in _refused(tmp_path / "tuned")


def test_only_a_failed_checksum_is_damage(tmp_path: Path) -> None:
    """Metadata of a newer release, a missing tensor and a short file are no damage."""
    import torch

    from llmtrain_trainer.checkpoint.metadata import METADATA_FILE, latest_complete
    from llmtrain_trainer.checkpoint.state import require_intact
    from llmtrain_trainer.weights.reading import weights_of_checkpoint
    from tests.support.trainer.checkpoints import SHARD

    folder = write_checkpoint(tmp_path / "base")
    deeper = SHAPE.model_copy(update={"layers": 2})
    with pytest.raises(InputError, match=r"it has no tensor layers\.1") as caught:
        weights_of_checkpoint(folder, deeper)(["layers.1.ffn.up.weight"])
    assert "damaged" not in caught.value.message
    shard = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(shard[:-9])
    with pytest.raises(InputError, match="cannot be read") as caught:
        require_intact(folder)
    assert "damaged" not in caught.value.message
    (folder / SHARD).write_bytes(shard)

    def error() -> InputError:
        with pytest.raises(InputError) as caught:
            latest_complete(tmp_path / "base", torch.__version__, SHAPE.to_wire())
        return caught.value

    path = folder / METADATA_FILE
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"step"', b'"stop"'))
    assert "is damaged" in error().message
    # an older checkpoint is not taken in place of one that only a newer release understands
    newer = _newer(tmp_path, whole)
    assert "was written by a newer release" in error().message
    assert newer.exists()


def _newer(root: Path, metadata: bytes) -> Path:
    import json
    from zlib import crc32

    from llmtrain_trainer.checkpoint.metadata import METADATA_FILE
    from tests.support.trainer.checkpoints import edit_index

    content = json.dumps({**json.loads(metadata), "step": 9, "future": 1}).encode()
    folder = root / "base" / "step-9"
    shutil.copytree(root / "base" / "step-1", folder)
    (folder / METADATA_FILE).write_bytes(content)
    edit_index(folder, lambda wire: wire["files"].update({METADATA_FILE: crc32(content)}))
    return folder
