"""PEFT loads the adapters that a run exports, and adapters that PEFT writes are imported.

Run by `make text-matrix`, which downloads `peft` and `accelerate` and runs them from their wheels.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer import published_texts
from tests.support.trainer.adapters import base_record, write_adapters
from tests.support.trainer.checkpoints import SHAPE, write_checkpoint

pytestmark = pytest.mark.torch

PROMPT = [(37 * place) % 290 for place in range(SHAPE.sequence_length)]

LOAD = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapters, prompt, logits = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).float(), adapters)
with torch.no_grad():
    torch.save(model(torch.tensor([eval(prompt)])).logits[0], logits)
"""

WRITE = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
base, adapters, prompt, logits, rslora = sys.argv[1:]
torch.manual_seed(5)
config = LoraConfig(
    r=4, lora_alpha=6, target_modules=["q_proj", "o_proj", "up_proj", "down_proj"],
    init_lora_weights=False, use_rslora=rslora == "True", task_type="CAUSAL_LM",
)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(base).float(), config).eval()
with torch.no_grad():
    torch.save(model(torch.tensor([eval(prompt)])).logits[0], logits)
model.save_pretrained(adapters)
"""


def with_peft(program: str, *arguments: object) -> None:
    """Run a program that imports PEFT, in a process of its own."""
    wheels = [
        next(published_texts.fetch().glob(f"{name}-*.whl")) for name in ("peft", "accelerate")
    ]
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, wheels))},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def our_logits(root: Path, base: Path | None = None) -> Any:
    import torch

    from llmtrain_trainer.weights.sample import load_model

    model, _ = load_model(root, base)
    with torch.no_grad():
        return model(torch.tensor([PROMPT]))[0]


def test_peft_loads_exported_adapters(tmp_path: Path) -> None:
    import torch

    from llmtrain_trainer.weights.export import export_checkpoint
    from llmtrain_trainer.weights.peft import export_adapters

    base = write_checkpoint(tmp_path / "base")
    write_adapters(tmp_path / "tuned", base_record(tmp_path / "base"))
    export_checkpoint(base, tmp_path / "model")
    export_adapters(tmp_path / "tuned", tmp_path / "adapters")
    with_peft(LOAD, tmp_path / "model", tmp_path / "adapters", PROMPT, tmp_path / "logits")
    ours = our_logits(tmp_path / "tuned", base)
    theirs = torch.load(tmp_path / "logits")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (theirs - our_logits(base)).abs().max() > 0.1  # the adapters count


@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_that_peft_writes_are_imported(rslora: bool, tmp_path: Path) -> None:
    import torch

    from llmtrain_trainer.weights.export import export_checkpoint
    from llmtrain_trainer.weights.load import import_checkpoint

    base = write_checkpoint(tmp_path / "base")
    model, adapters = tmp_path / "model", tmp_path / "adapters"
    export_checkpoint(base, model)
    with_peft(WRITE, model, adapters, PROMPT, tmp_path / "logits", rslora)
    folder, _ = import_checkpoint(adapters, tmp_path / "new", model)
    theirs = torch.load(tmp_path / "logits")
    torch.testing.assert_close(our_logits(folder), theirs, rtol=1e-4, atol=1e-4)
    assert (theirs - our_logits(base)).abs().max() > 0.1
