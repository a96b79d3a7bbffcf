"""What belongs to a tokenizer beside its vocabulary: special tokens, chat template, stop tokens.

The files have the names of published models. They are in the folder of `tokenizer.json`, in
prepared data, in checkpoints and in exported models alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from tokenizers import Tokenizer, models

from llmtrain_trainer.data.tokenizer import FIELD
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError, Folder, read_file

TOKENIZER_CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
SPECIAL_TOKENS, GENERATION_CONFIG = "special_tokens_map.json", "generation_config.json"

SETTINGS_FILES = (TOKENIZER_CONFIG, TEMPLATE, SPECIAL_TOKENS, GENERATION_CONFIG)
"""Files beside a tokenizer.json that belong to it."""

MAX_BYTES = 16 << 20
"""Length of one of these files."""


@dataclass(frozen=True)
class TokenizerSettings:
    """The files beside a tokenizer, as far as they matter here."""

    tokens: Mapping[str, str] = field(default_factory=dict)
    """Special tokens by the name that chat templates use: `bos_token`, `eos_token` and others."""
    add_bos: bool | None = None
    """Begin each document with the BOS token. None: as the tokenizer itself does."""
    template: str | None = None
    """Chat template in Jinja."""
    template_file: str = TEMPLATE
    stop_tokens: tuple[int, ...] = ()
    """Ids at which generation ends."""

    @property
    def bos(self) -> str:
        """Return the token that begins a text, or an empty string."""
        return self.tokens.get("bos_token", "")

    @property
    def eos(self) -> str | None:
        """Return the token that ends a text or a turn, if the files name one."""
        return self.tokens.get("eos_token")


def settings_files(tokenizer: Folder) -> dict[str, bytes]:
    """Return the content of the files beside a tokenizer.json that belong to it, by name."""
    paths = {name: tokenizer.parent / name for name in SETTINGS_FILES}
    return {name: read_file(path, MAX_BYTES) for name, path in paths.items() if path.is_file()}


def read_settings(tokenizer: Folder) -> TokenizerSettings:
    """Return the settings beside a tokenizer.json. Raises InputError if a file cannot be read.

    The template is `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`. Of several
    templates, the one named `default` is used.
    """
    folder = tokenizer.parent
    config = read_json_file(folder / TOKENIZER_CONFIG)
    template: Any = config.get("chat_template")
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if _is_named(each)}
        template = named.get("default")
    beside = folder / TEMPLATE
    if beside.exists():
        try:
            template = _read(beside).decode()
        except UnicodeDecodeError as error:
            raise _unreadable(beside, error) from error
    tokens = {**_tokens(read_json_file(folder / SPECIAL_TOKENS)), **_tokens(config)}
    adds = config.get("add_bos_token")
    return TokenizerSettings(
        tokens,
        adds if isinstance(adds, bool) else None,
        template if isinstance(template, str) else None,
        str(beside if beside.exists() else folder / TOKENIZER_CONFIG),
        _ids(read_json_file(folder / GENERATION_CONFIG).get("eos_token_id")),
    )


def first_tokens(tokenizer: Tokenizer, settings: TokenizerSettings) -> list[int]:
    """Return the ids that begin each document: BOS, if the tokenizer or its settings add it."""
    bos = tokenizer.token_to_id(settings.bos) if settings.bos else None
    if settings.add_bos is not None:
        return [int(bos)] if settings.add_bos and bos is not None else []
    if tokenizer.post_processor is None:
        return []
    # its regular expressions may never end, and what is added to a text does not depend on them
    probe = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    probe.post_processor = tokenizer.post_processor
    encoded = probe.encode("a")
    pairs = zip(encoded.ids, encoded.sequence_ids, strict=True)
    return [int(number) for number, _ in takewhile(lambda pair: pair[1] is None, pairs)]


def read_json_file(path: Folder) -> dict[str, Any]:
    """Return the object of a JSON file, or {} if there is none. Raises InputError."""
    if not path.exists():
        return {}
    try:
        return json_of(_read(path))
    except (ValueError, TypeError, RecursionError) as error:
        raise _unreadable(path, error) from error


def json_of(content: bytes) -> dict[str, Any]:
    """Return the object of a JSON text. Raises ValueError, TypeError or RecursionError."""
    found = dict(json.loads(content))
    json.dumps(found, ensure_ascii=False).encode()  # no halves of surrogate pairs
    return found


def to_json(value: Mapping[str, Any]) -> bytes:
    """Return the content of a JSON file."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _read(path: Folder) -> bytes:
    try:
        return read_file(path, MAX_BYTES)
    except (OSError, DamagedFileError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Folder, error: Exception) -> InputError:
    return InputError(
        "InvalidSpec",
        f"{path}: it cannot be read: {str(error)[:300]}",
        field=FIELD,
        remedy="put the files of the model there that belong to its tokenizer",
    )


def _tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens of a configuration. Added tokens are written as objects."""
    found = {}
    for name, value in config.items():
        if name.endswith("_token") and not name.startswith("add_"):
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[name] = text
    return found


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(each for each in values if type(each) is int and each >= 0)


def _is_named(template: Any) -> bool:
    return isinstance(template, dict) and isinstance(template.get("name"), str)
