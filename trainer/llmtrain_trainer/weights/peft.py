"""Adapters in the format of PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llmtrain_core.api.job import Architecture
from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata
from llmtrain_trainer.checkpoint.paths import TOKENIZER, URI_FIELD, Folder
from llmtrain_trainer.checkpoint.retention import read_lease
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError, read_file
from llmtrain_trainer.weights.export_folder import begin_export
from llmtrain_trainer.weights.exported_tokenizer import tokenizer_files
from llmtrain_trainer.weights.families import tensor_mappings
from llmtrain_trainer.weights.reading import (
    ReadWeights,
    adapters_of_checkpoint,
    find_checkpoint,
    saved_architecture,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

_MAX_CONFIG = 1 << 20

_DEFAULTS: Mapping[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layers_to_transform": None,
}
"""Settings of which only this value is supported. Those that are absent have it."""

_REFUSED = ("alora_invocation_tokens", "layer_replication", "use_qalora")
"""Settings with which the adapters are no addition to the weights of the base."""

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` that change the weights of the base before the training."""


def export_adapters(root: Folder, to: Folder) -> CheckpointMetadata:
    """Write the adapters of a checkpoint, without their base; return its metadata.

    Raises InputError for a checkpoint of whole weights, and for a model whose adapters PEFT has no
    place for.
    """
    folder, metadata = find_checkpoint(root)
    lora = metadata.lora
    if lora is None:
        raise InputError(
            "ExportUnsupported",
            f"{folder} holds whole weights, not adapters",
            field=URI_FIELD,
            remedy="export without --adapters",
        )
    architecture = saved_architecture(folder, metadata)
    modules = _modules(architecture)
    tensors: dict[str, Tensor] = {}
    with read_lease(folder):
        for name, (a, b) in adapters_of_checkpoint(folder, architecture, int(lora["rank"])):
            if name not in modules:
                raise InputError(
                    "ExportUnsupported",
                    f"PEFT has no adapter for a part of the matrix that holds {name}",
                    field="spec.training.lora.targets",
                    remedy="export the merged weights, without --adapters",
                )
            tensors[f"{PREFIX}{modules[name]}.lora_A.weight"] = a.contiguous()
            tensors[f"{PREFIX}{modules[name]}.lora_B.weight"] = b.contiguous()
    config = {
        **_DEFAULTS,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora["rank"],
        "lora_alpha": lora["alpha"],
        "lora_dropout": 0.0,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "inference_mode": True,
    }
    saved = folder / TOKENIZER
    files = tokenizer_files(saved, architecture.sequence_length) if saved.is_file() else {}
    begin_export(to, [CONFIG, WEIGHTS, *files])
    (to / WEIGHTS).write_bytes(save(tensors, {"format": "pt"}))
    for name, content in files.items():
        (to / name).write_bytes(content)
    (to / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return metadata


def is_adapters(folder: Path) -> bool:
    """Return True if a folder holds adapters of PEFT."""
    return (folder / CONFIG).is_file()


def merge_adapters(folder: Path, architecture: Architecture, base: ReadWeights) -> ReadWeights:
    """Return a function that reads the weights of `base` with the adapters of a folder merged.

    Raises InputError for settings that are not plain LoRA, and for adapters that the model has no
    weight for.
    """
    scale, rank = _scale(folder)
    modules = {name: f"{PREFIX}{module}" for name, module in _modules(architecture).items()}
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, str(error)) from error
    known = {f"{module}.lora_{part}.weight" for module in modules.values() for part in "AB"}
    if not stored:
        raise _unreadable(folder, f"{WEIGHTS} is empty")
    unknown = sorted(set(stored) - known)
    if unknown:
        raise InputError(
            "ImportUnsupported",
            f"{folder}: the model has no weight for {unknown[0][:100]}",
            remedy="name the model that the adapters were trained on as --base",
        )

    def read(names: Sequence[str]) -> Mapping[str, Tensor]:
        found = dict(base(names))
        for name in names:
            module = modules.get(name)
            a, b = (stored.get(f"{module}.lora_{part}.weight") for part in "AB")
            if a is None or b is None:
                if a is not b:
                    raise _unreadable(folder, f"{module} has only one of two matrices")
                continue
            size = found[name].shape
            if len(size) != 2 or (a.shape, b.shape) != ((rank, size[1]), (size[0], rank)):
                problem = f"shapes {list(a.shape)} and {list(b.shape)} for rank {rank}"
                raise _unreadable(folder, f"{module} has {problem} and a weight of {list(size)}")
            found[name] = found[name].float() + scale * (b.float() @ a.float())
        return found

    return read


def _scale(folder: Path) -> tuple[float, int]:
    """Return the factor of B A, and the rank."""
    try:
        config = dict(json.loads(read_file(folder / CONFIG, _MAX_CONFIG)))
        for name, usual in _DEFAULTS.items():
            value = config.get(name, usual)
            if value != usual and (value or usual):
                raise _unsupported(folder, f"{name} is {str(value)[:64]!r}, not {usual!r}")
        initial = str(config.get("init_lora_weights")).lower()
        for name in _REFUSED:
            if config.get(name):
                raise _unsupported(folder, f"{name} is {str(config[name])[:64]!r}")
        if initial.startswith(_CHANGES_BASE):
            raise _unsupported(folder, f"init_lora_weights is {initial[:64]!r}")
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        if not math.isfinite(scale):
            raise ValueError(f"lora_alpha is {alpha}")
        return scale, rank
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        ZeroDivisionError,
        RecursionError,
        DamagedFileError,
    ) as error:
        raise _unreadable(folder, f"{CONFIG}: {error!r}") from error


def _modules(architecture: Architecture) -> dict[str, str]:
    """Return the Hugging Face module of every weight that is stored alone and as it is."""
    return {
        mapping.names[0]: mapping.hf_name.removesuffix(".weight")
        for mapping in tensor_mappings(architecture)
        if len(mapping.names) == 1 and not mapping.transposed and mapping.expert is None
    }


def _unsupported(folder: Path, problem: str) -> InputError:
    return InputError(
        "ImportUnsupported",
        f"{folder / CONFIG}: {problem}",
        remedy="merge such adapters into their base with PEFT, and import the model",
    )


def _unreadable(folder: Path, problem: str) -> InputError:
    return InputError(
        "ModelUnreadable",
        f"{folder}: {problem[:300]}",
        remedy=f"name a folder with {CONFIG} and {WEIGHTS}",
    )
