"""A tiny chat model with its own template and special tokens, and jobs on conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtrain_core.api.model import Architecture
from llmtrain_trainer.data.tokenizer import train_bpe

SHAPE = Architecture(
    layers=2, hidden_size=32, heads=4, kv_heads=2, ffn_size=48, vocab_size=320, sequence_length=64
)

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|begin|>", "<|finish|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
SETTINGS: dict[str, dict[str, Any]] = {
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": {"__type": "AddedToken", "content": "<|finish|>"},
        "pad_token": "<|finish|>",
        "add_bos_token": True,
        "chat_template": TEMPLATE,
        "model_max_length": 8,
    },
    "generation_config.json": {"temperature": 0.5, "top_p": 0.9},
}


def special_id(token: str) -> int:
    """Return the id of a special token, which are the first ones."""
    return 1 + SPECIAL.index(token)


def write_chat_model(folder: Path, rows: Sequence[int] = ()) -> None:
    """Write a chat model; the output of the tokens in `rows` is the most likely one at times."""
    import torch

    from llmtrain_trainer.model.decoder import Decoder
    from llmtrain_trainer.weights.huggingface import export

    folder.mkdir()
    tokenizer = train_bpe(["say hi, and be brief", "hi there"] * 9, 310, SPECIAL)
    tokenizer.save(str(folder / "source.json"))
    torch.manual_seed(3)
    model = Decoder(SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3)
        for row in rows:
            assert model.output is not None
            model.output.weight[row] *= 3
    weights = {name: each.detach() for name, each in model.named_parameters()}
    export(lambda names: {name: weights[name] for name in names}, SHAPE, folder)
    (folder / "source.json").rename(folder / "tokenizer.json")
    for name, settings in SETTINGS.items():
        (folder / name).write_text(json.dumps(settings))
