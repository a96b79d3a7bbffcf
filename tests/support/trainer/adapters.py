"""Checkpoints of adapters on the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.trainer.checkpoints import SHAPE

LORA = {"rank": 2, "alpha": 6.0, "targets": ["down_proj", "q_proj"]}
TARGETS = {"layers.0.attention.wq": (32, 32), "layers.0.ffn.down": (32, 48)}


def write_adapters(root: Path, base: dict[str, Any] | None) -> tuple[Path, dict[str, Any]]:
    """Write a checkpoint of adapters; return its folder and what they add to the weights."""
    import torch

    from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata, create_step_folder
    from llmtrain_trainer.checkpoint.shards import write_state
    from llmtrain_trainer.checkpoint.state import MODEL

    metadata = CheckpointMetadata(
        2, torch.__version__, "dp1", SHAPE.to_wire(), "d", 16, None, lora=LORA, base=base
    )
    folder = create_step_folder(root, metadata, root.parent / "base" / "source.json")
    torch.manual_seed(9)
    state, change = {}, {}
    for name, (outputs, inputs) in TARGETS.items():
        a, b = torch.randn(2, inputs), torch.randn(outputs, 2)
        state[f"{name}.lora.a"], state[f"{name}.lora.b"] = a, b
        change[f"{name}.weight"] = 3.0 * (b @ a)
    write_state(folder, {MODEL: state}, None)
    return folder, change


def base_record(base: Path) -> dict[str, Any]:
    """Return what adapters record of their base, a checkpoint that `write_checkpoint` wrote."""
    import torch

    from llmtrain_trainer.checkpoint.init_from import base_checkpoint

    return base_checkpoint(base.as_uri(), torch.__version__, SHAPE.to_wire()).record
