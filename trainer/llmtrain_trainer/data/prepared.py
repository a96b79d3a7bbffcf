"""Prepared data: read the manifest and check the files against it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.defaults import CHAT_TEMPLATE_LENGTH
from llmtrain_trainer.data.manifest import load_manifest, require_valid
from llmtrain_trainer.data.preparation.manifest_plan import FORMAT, READABLE_FORMATS
from llmtrain_trainer.data.preparation.pack import KIND
from llmtrain_trainer.data.preparation.workspace import MANIFEST
from llmtrain_trainer.data.shards import corrupt_error
from llmtrain_trainer.data.tokenizer import MAX_TOKENIZER_BYTES, end_token, open_tokenizer
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError, read_file

TRAIN, HELD_OUT = "train", "held-out"


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The location of the shards and the number of tokens in them."""

    folder: Path
    train_tokens: int
    held_out_tokens: int
    digest: str
    """Hash of the sources' content, of everything that determined the tokens, and of the
    weights."""
    sources: tuple[tuple[str, float], ...] = ()
    """Subfolders of shards and their weights. Empty: the shards are in the folder itself."""
    examples: bool = False
    """The tokens are marked: fine-tuning examples instead of running text."""
    template: str | None = None
    """The file, or the field of the job, that the chat template of the examples came from."""
    end: int | None = None
    """Token that ends a document. None: the one of the tokenizer in the folder."""
    first: tuple[int, ...] = ()
    """Tokens that begin each document of running text."""


def is_prepared(folder: Path) -> bool:
    """Return True if a folder holds prepared data."""
    try:
        return load_manifest(folder / MANIFEST).get("kind") == KIND
    except (OSError, DamagedFileError):
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check a manifest. Raises InputError if it is not of this format."""
    path = folder / MANIFEST
    try:
        manifest = load_manifest(path)
        kind, form = manifest.get("kind"), manifest.get("format")
        if kind != KIND or form not in READABLE_FORMATS:
            found = f"of format {str(form)[:40]}, and this release reads up to {FORMAT}"
            raise DamagedFileError(found)
        require_valid(path, manifest)
    except (OSError, DamagedFileError) as error:
        raise corrupt_error(path, f"it cannot be used: {error}") from error
    return manifest


def prepared_with(manifest: dict[str, Any]) -> str:
    """Return the format and the cleaning of prepared data. Format 2 cleaned white space always."""
    form = manifest["format"]
    sources = (
        f"{source['name']}: cleaning {source.get('cleaning', 'web')}"
        for source in manifest["sources"]
    )
    return f"format {form}; " + ", ".join(sources)


def load(folder: Path, vocab_size: int, sequence: int, field: str) -> PreparedData:
    """Return the data of a folder for a model. Raises InputError if they do not match.

    All shards must exist with their full length. Their content is checked block by block when it is
    read, because a corpus may be larger than a pod can read before it starts.
    """
    manifest = read_manifest(folder)
    tokenizer = manifest["tokenizer"]
    size = tokenizer["vocabSize"]
    if size > vocab_size:
        raise InputError(
            "InvalidSpec",
            f"{folder} was tokenised with {size} tokens and the model's vocabulary is {vocab_size}",
            field="spec.model.architecture.vocabSize",
            remedy=f"use {size} or more, or prepare the data again",
        )
    for shard in shards(manifest):
        _require_length(folder / shard["file"], shard["tokens"] * manifest["bytesPerToken"])
    weights = [(source["name"], float(source["weight"])) for source in manifest["sources"]]
    examples = manifest.get("objective") == "sft"
    shaped = json.dumps([manifest["digest"], weights]).encode()
    data = PreparedData(
        folder,
        sum(source["tokens"][TRAIN] for source in manifest["sources"]),
        sum(source["tokens"][HELD_OUT] for source in manifest["sources"]),
        hashlib.sha256(shaped).hexdigest()[:32],
        tuple(weights),
        examples,
        template=_template_name(manifest) if examples else None,
        end=tokenizer.get("endToken"),
        first=tuple(tokenizer.get("firstTokens", ())),
    )
    # training reads whole sequences, an evaluation shorter ones, too; an example is always whole
    train, held_out = (1, 1) if data.examples else (sequence + 1, 2)
    for name, count, least in (
        (TRAIN, data.train_tokens, train),
        (HELD_OUT, data.held_out_tokens, held_out),
    ):
        if count < least:
            raise InputError(
                "CorpusTooSmall",
                f"the {name} part has {count} tokens, and at least {least} are needed",
                field=field,
                remedy="add text, choose what ends a document (data.sources[].documents), or change"
                " data.heldOutFraction or the sequence length",
            )
    return data


def end_of_documents(data: PreparedData) -> int:
    """Return the token that ends a document. Raises InputError if the tokenizer has none."""
    if data.end is not None:
        return data.end
    path = tokenizer_of(data.folder)
    if path is None:
        raise corrupt_error(data.folder, "it has no tokenizer, which knows the end of a document")
    return end_token(open_tokenizer(path))


def tokenizer_of(folder: Path) -> Path | None:
    """Return the tokenizer of prepared data; None if the folder has shards only."""
    if not (folder / MANIFEST).is_file():
        return None
    path = folder / str(read_manifest(folder)["tokenizer"]["file"])
    return path if path.is_file() else None


def verify(folder: Path) -> int:
    """Compare all files with their hashes; return their number. Raises InputError on a mismatch."""
    manifest = read_manifest(folder)
    listed = list(shards(manifest))
    for shard in listed:
        path = folder / shard["file"]
        _require_length(path, shard["tokens"] * manifest["bytesPerToken"])
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                raise corrupt_error(path, "its hash is not the one in the manifest")
    tokenizer = folder / manifest["tokenizer"]["file"]
    try:
        content = read_file(tokenizer, MAX_TOKENIZER_BYTES)
    except (OSError, DamagedFileError) as error:
        raise corrupt_error(tokenizer, f"it cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != manifest["tokenizer"]["sha256"]:
        raise corrupt_error(tokenizer, "its hash is not the one in the manifest")
    return len(listed)


def shards(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the manifest entry of every shard."""
    for source in manifest["sources"]:
        yield from source["shards"]


def _template_name(manifest: dict[str, Any]) -> str:
    return clean_text(str(manifest.get("chatTemplate", "not recorded")), CHAT_TEMPLATE_LENGTH)


def _require_length(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise corrupt_error(path, f"it cannot be read: {error.strerror}") from error
    if not path.is_file():
        raise corrupt_error(path, "it is not a file")
    if found != size:
        raise corrupt_error(path, f"it has {found} bytes, and {size} were written")
