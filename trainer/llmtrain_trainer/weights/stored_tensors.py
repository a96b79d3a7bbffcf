"""The tensors of a Hugging Face folder: the file of each, and whether the decoder uses all of them.

A tensor that nothing reads is part of what the model computes, for example the scales of quantized
weights, or layers of another kind. So such a folder is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open

from llmtrain_core.validation.family import FAMILIES
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import read_file

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

MAX_INDEX = 256 << 20
"""Bytes of the index."""

WEIGHT_TYPES = ("F64", "F32", "F16", "BF16")
"""Types of stored weights, as safetensors name them. Others need scales to be read."""

_BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.(masked_)?bias)")
"""Constants that older releases of `transformers` stored: rotary frequencies, causal masks."""

OUTPUT, EMBEDDINGS = "lm_head.weight", ("model.embed_tokens.weight", "transformer.wte.weight")


def files_of_tensors(folder: Path) -> dict[str, Path]:
    """Return the file of every stored tensor. Raises ValueError if the index names other tensors.

    Also raises the errors of unreadable files.
    """
    named: dict[str, str] | None = None
    if (folder / INDEX).is_file():
        named = json.loads(read_file(folder / INDEX, MAX_INDEX))["weight_map"]
    names = {Path(name).name for name in named.values()} if named is not None else {SINGLE}
    found: dict[str, Path] = {}
    for path in sorted(folder / name for name in names):
        if not path.is_file():  # a pipe would make the reader wait forever
            raise ValueError(f"{path.name} is not a file")
        with safe_open(path, framework="pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    missing = sorted(set(named or ()) - found.keys())
    if missing:
        raise ValueError(f"no file has {_listed(missing)}, which the index names")
    return found


def require_plain_weights(config: Mapping[str, Any]) -> None:
    """Raise InputError if a `config.json` describes quantized weights."""
    described = config.get("quantization_config") or config.get("compression_config")
    if not described:
        return
    method = described.get("quant_method") if isinstance(described, dict) else described
    raise _quantized(f"config.json says that the weights are quantized ({str(method)[:64]})")


def require_all_used(files: Mapping[str, Path], used: Collection[str], tied: bool) -> None:
    """Raise InputError for tensors that are quantized, or that the decoder does not use.

    `used` are the names of the tensors that are read. A stored output projection of a model with
    tied embeddings must equal the embedding.
    """
    with ExitStack() as stack:
        opened = {
            path: stack.enter_context(safe_open(path, framework="pt"))
            for path in set(files.values())
        }
        for name in sorted(used):
            kind = opened[files[name]].get_slice(name).get_dtype()
            if kind not in WEIGHT_TYPES:
                raise _quantized(f"{name} has the type {kind}, whose scale is a separate tensor")
        unused = {name for name in files.keys() - set(used) if not _BUFFERS.fullmatch(name)}
        if tied and OUTPUT in unused:
            unused.remove(OUTPUT)
            embedding = next(name for name in used if _is_embedding(name))
            first, second = (opened[files[name]].get_tensor(name) for name in (OUTPUT, embedding))
            if not first.equal(second):
                raise _unsupported(f"{OUTPUT} differs from {embedding}, and config.json ties them")
    if unused:
        raise _unsupported(f"the decoder has no place for {_listed(unused)}")


def _is_embedding(name: str) -> bool:
    return any(name in (each, each.removeprefix("transformer.")) for each in EMBEDDINGS)


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} other tensors" if len(ordered) > 3 else ""
    return ", ".join(name[:100] for name in ordered[:3]) + more


def _quantized(problem: str) -> InputError:
    return InputError(
        "ImportUnsupported",
        problem,
        remedy="use the model's folder with float32, float16 or bfloat16 weights, or let"
        " `transformers` dequantize it and save it again",
    )


def _unsupported(problem: str) -> InputError:
    return InputError("ImportUnsupported", problem, remedy=f"use a model of {FAMILIES}")
