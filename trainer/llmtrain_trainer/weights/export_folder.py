"""The folder of an exported model: which files this trainer wrote, and may replace.

`llmtrain-export.json` lists them and is written before them, so an interrupted export can be
repeated. A model's other files in the folder would be loaded together with it, so they are refused,
and never deleted.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import PurePosixPath

from llmtrain_trainer.checkpoint.paths import EXPORT_FIELD, Folder, list_dir, make_dir
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError, read_file

EXPORT_MANIFEST = "llmtrain-export.json"

_MAX_MANIFEST = 16 << 20

_NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
    "adapter_config.json",
)
_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf")
"""Files that `transformers` and others load as a part of a model."""


def require_exportable(folder: Folder) -> None:
    """Raise InputError if a folder has files of a model that this trainer did not write."""
    foreign = sorted(
        name
        for name in {path.name for path in list_dir(folder)} - _written(folder)
        if name in _NAMES or name.endswith(_SUFFIXES)
    )
    if foreign:
        more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        raise InputError(
            "ExportNotWritable",
            f"{folder} has files of a model that are not listed in {EXPORT_MANIFEST}, so this"
            f" trainer did not write them: {', '.join(foreign[:5])[:300]}{more}",
            field=EXPORT_FIELD,
            remedy="name an empty folder, or remove these files",
        )


def begin_export(folder: Folder, names: Collection[str]) -> None:
    """Remove the files of the last export, and list those of the next one.

    Raises InputError if the folder has files of another model.
    """
    require_exportable(folder)
    make_dir(folder)
    written = _written(folder)
    _list(folder, {*names, *written})
    for name in written:
        (folder / name).unlink(missing_ok=True)
    _list(folder, names)


def _list(folder: Folder, names: Collection[str]) -> None:
    listed = json.dumps({"files": sorted(names)}, indent=1)
    (folder / EXPORT_MANIFEST).write_text(listed + "\n")


def _written(folder: Folder) -> set[str]:
    """Return the names of the files that earlier exports wrote."""
    path = folder / EXPORT_MANIFEST
    try:
        named = json.loads(read_file(path, _MAX_MANIFEST))["files"]
        if any(PurePosixPath(name).name != name for name in named):
            raise ValueError("a file is outside the folder")
        return set(named)
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except (ValueError, KeyError, TypeError, RecursionError, DamagedFileError) as error:
        raise InputError(
            "ExportNotWritable",
            f"{path} is not the list of an export: {str(error)[:200]}",
            field=EXPORT_FIELD,
            remedy="name an empty folder",
        ) from error
