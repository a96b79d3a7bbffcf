"""The manifest of prepared data. It may come from a stranger, so all of it is checked."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from llmtrain_trainer.runtime.untrusted_files import (
    DamagedFileError,
    first_problem,
    is_inside,
    read_file,
)

MAX_BYTES = 256 << 20


def _relative(path: str) -> str:
    parts = PurePosixPath(path)
    if "\0" in path or not parts.parts or parts.is_absolute() or ".." in parts.parts:
        raise ValueError("not the path of a file in this folder")
    return path


Inside = Annotated[str, Field(max_length=512), AfterValidator(_relative)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Token = Annotated[int, Field(ge=0, lt=1 << 32)]
Digest = Annotated[str, Field(max_length=128)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Shard(_Part):
    file: Inside
    tokens: Count
    sha256: Digest


class _Tokenizer(_Part):
    file: Inside
    sha256: Digest
    vocabSize: Annotated[int, Field(ge=1, lt=1 << 32)]  # noqa: N815
    endToken: Token | None = None  # noqa: N815
    firstTokens: list[Token] = []  # noqa: N815


class _Tokens(_Part):
    train: Count
    held_out: Annotated[Count, Field(alias="held-out")]


class _Causes(_Part):
    count: Count
    first: list[str]


class _Excerpt(_Part):
    name: str
    text: str


class _Group(_Part):
    removed: Count
    kept: _Excerpt
    first: Annotated[list[_Excerpt], Field(min_length=1)]


class _NearDuplicates(_Part):
    largest: list[_Group] = []


class _Documents(_Part):
    dropped: dict[str, Count] = {}


class _Source(_Part):
    name: Inside
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    tokens: _Tokens
    shards: list[_Shard]
    cleaning: Annotated[str, Field(max_length=16)] = "web"
    documents: _Documents = _Documents()
    skipped: dict[str, _Causes] = {}
    dropped: dict[str, _Causes] = {}
    truncated: Count = 0
    nearDuplicates: _NearDuplicates = _NearDuplicates()  # noqa: N815


class _Manifest(_Part):
    kind: str
    format: int
    digest: Digest
    bytesPerToken: Literal[2, 4]  # noqa: N815
    objective: str = "pretrain"
    tokenizer: _Tokenizer
    sources: list[_Source]


_JSON: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


def load_manifest(path: Path) -> dict[str, Any]:
    """Return the JSON object of a manifest.

    Raises DamagedFileError if it is none, and OSError if the file cannot be read.
    """
    content = read_file(path, MAX_BYTES)
    try:
        return _JSON.validate_json(content)
    except ValidationError as error:
        raise DamagedFileError(f"{path.name}: {first_problem(error)}") from error


def require_valid(path: Path, manifest: dict[str, Any]) -> None:
    """Raise DamagedFileError for a field of the wrong type, or a file outside the folder."""
    try:
        checked = _Manifest.model_validate(manifest)
    except ValidationError as error:
        raise DamagedFileError(f"{path.name}: {first_problem(error)}") from error
    names = [checked.tokenizer.file]
    for source in checked.sources:
        names += [source.name, *(shard.file for shard in source.shards)]
    for name in names:
        if not is_inside(path.parent / name, path.parent):
            raise DamagedFileError(f"{path.name}: {name!r} leads out of the folder")
