"""The plan of a preparation: the files, divided into units of work, and its key.

Every step writes whole files, each a pure function of the plan and of complete files. So any number
of processes prepare the same bytes, interrupted or not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain_trainer.config import DataConfig, Source
from llmtrain_trainer.data import examples
from llmtrain_trainer.data.chat_template import FIELD as CHAT
from llmtrain_trainer.data.chat_template import (
    ChatTemplate,
    preset_template,
    template_of,
    with_tokens,
)
from llmtrain_trainer.data.documents import InputFile, ReadReport
from llmtrain_trainer.data.preparation.sources import list_files, locate
from llmtrain_trainer.data.shards import SHARD_TOKENS, token_type
from llmtrain_trainer.data.tokenizer import (
    FIELD,
    has_added_token,
    is_unmarked_control_token,
    is_unmarked_end_token,
    open_tokenizer,
)
from llmtrain_trainer.data.tokenizer_settings import (
    TokenizerSettings,
    first_tokens,
    read_settings,
    settings_files,
)
from llmtrain_trainer.errors import InputError

FORMAT = 3
"""Increased whenever the same input would be prepared differently."""

READABLE_FORMATS = (2, FORMAT)
"""Formats of prepared data that training reads. The shards are the same in all of them."""

UNIT_BYTES = 32 << 20
UNIT_FILES = 1024
"""A unit of work is a run of files of one source up to either limit. A larger file is one unit."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A run of files of one source, read by one process."""

    number: int
    source: int
    files: tuple[InputFile, ...]


@dataclass(frozen=True, slots=True)
class PreparationPlan:
    """Everything that determines the prepared bytes."""

    config: DataConfig
    sources: tuple[Source, ...]
    """Ordered by name: the API treats sources as a map, so their order must not matter."""
    units: tuple[Unit, ...]
    key: str
    """Hash of the configuration, the weights, the paths, sizes and modification times of the files,
    and the files beside the tokenizer."""
    shape: str
    """The configuration that determines the tokens, as JSON."""
    shard_tokens: int
    tokenizer: Path | None
    settings: TokenizerSettings = field(default_factory=TokenizerSettings)
    """What is beside a tokenizer that was not trained here."""
    first_tokens: tuple[int, ...] = ()
    """Tokens that begin each document."""
    template: ChatTemplate | None = None
    """Chat template of conversations. None: the sources are documents."""
    reports: tuple[dict[str, Any], ...] = ()
    """What was found in each source, as of `ReadReport.to_json`."""

    @property
    def token_type(self) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
        """Type of a stored token. Tokens of examples carry marks."""
        return np.dtype("<u4") if self.template else token_type(self.config.vocab_size)


def plan_preparation(
    config: DataConfig, shard_tokens: int = SHARD_TOKENS, base_tokenizer: Path | None = None
) -> PreparationPlan:
    """List the files of all sources. Raises InputError if a source has nothing to read.

    `base_tokenizer` is the tokenizer of `config.init_from`, used if the job names no tokenizer.
    """
    sources = tuple(sorted(config.sources, key=lambda source: source.name))
    units: list[Unit] = []
    files: list[InputFile] = []
    reports: list[dict[str, Any]] = []
    for index, source in enumerate(sources):
        report = ReadReport()
        found = list_files(source, report)
        reports.append(report.to_json())
        files += found
        for run in _runs_of(found):
            units.append(Unit(len(units), index, run))
    tokenizer = _tokenizer_path(config, base_tokenizer)
    settings = TokenizerSettings() if tokenizer is None else read_settings(tokenizer)
    template = _template(config, settings)
    first, has_unmarked = tuple[int, ...](), False
    if tokenizer is not None:
        opened = open_tokenizer(tokenizer)
        has_unmarked = has_added_token(
            opened, is_unmarked_control_token if template is None else is_unmarked_end_token
        )
        if template is None:
            first = tuple(first_tokens(opened, settings))
    shape = _shape(config, sources, shard_tokens, tokenizer, template, first, has_unmarked)
    seen = [[str(file.path), file.format, file.size, file.modified] for file in files]
    weights = [source.weight for source in sources]
    beside = [] if tokenizer is None else sorted(settings_files(tokenizer).items())
    copied = {name: hashlib.sha256(content).hexdigest() for name, content in beside}
    facts = [weights, seen, *([copied] if copied else [])]
    key = hashlib.sha256((shape + json.dumps(facts)).encode()).hexdigest()[:32]
    return PreparationPlan(
        config,
        sources,
        tuple(units),
        key,
        shape,
        shard_tokens,
        tokenizer,
        settings,
        first,
        template,
        tuple(reports),
    )


def _shape(
    config: DataConfig,
    sources: Sequence[Source],
    shard_tokens: int,
    tokenizer: Path | None,
    template: ChatTemplate | None,
    first: Sequence[int],
    has_unmarked: bool,
) -> str:
    """Return the configuration that determines the tokens, as JSON.

    `has_unmarked`: the tokenizer has control tokens that are not special, which earlier releases
    encoded as tokens.
    """
    shaped: list[Any] = [
        FORMAT,
        config.vocab_size,
        config.held_out_fraction,
        config.seed,
        shard_tokens,
        hashlib.sha256(tokenizer.read_bytes()).hexdigest() if tokenizer else None,
        [_shape_of(source) for source in sources],
    ]
    if template is not None and config.chat is not None:
        # these names are part of the data digest in checkpoints
        facts = {name: getattr(template, name) for name in ("source", "bos_token", "eos_token")}
        facts |= {"variables": template.variables, "format": examples.FORMAT}
        shaped.append([facts, config.chat.max_length, config.chat.overlong])
    if first:
        shaped.append(list(first))
    if has_unmarked:
        shaped.append("control tokens are text")
    return json.dumps(shaped)


_SHAPELESS = ("uri", "field", "weight", "max_unusable_rows")
"""Fields of a source that do not change its tokens."""


def _shape_of(source: Source) -> dict[str, Any]:
    """Return the settings of a source that determine its tokens."""
    facts = asdict(source)
    return {name: facts[name] for name in sorted(facts) if name not in _SHAPELESS}


def _template(config: DataConfig, settings: TokenizerSettings) -> ChatTemplate | None:
    """Return the template of the job, or that of the model, or `plain`."""
    chat = config.chat
    if chat is None:
        return None
    if chat.template is not None:
        return with_tokens(ChatTemplate(chat.template, origin=f"{CHAT}.template"), settings)
    if chat.preset is not None:
        return with_tokens(preset_template(chat.preset), settings)
    return template_of(settings) or with_tokens(preset_template("plain"), settings)


def _runs_of(files: Sequence[InputFile]) -> Iterator[tuple[InputFile, ...]]:
    held: list[InputFile] = []
    size = 0
    for file in files:
        if held and (size + file.size > UNIT_BYTES or len(held) == UNIT_FILES):
            yield tuple(held)
            held, size = [], 0
        held.append(file)
        size += file.size
    if held:
        yield tuple(held)


def _tokenizer_path(config: DataConfig, base_tokenizer: Path | None) -> Path | None:
    if config.tokenizer is None:
        if config.init_from is not None and base_tokenizer is None:
            raise ValueError("the tokenizer of the base checkpoint is missing")
        return base_tokenizer
    path = locate(Source("tokenizer", config.tokenizer, FIELD))
    if not path.is_file():
        raise InputError(
            "InvalidSpec", f"{path} is not a file", field=FIELD, remedy="name a tokenizer.json"
        )
    return path
