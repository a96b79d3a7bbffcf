"""The tokenizer of an exported model, with everything that belongs to it."""

from __future__ import annotations

from typing import Any

from llmtrain_trainer.checkpoint.paths import TOKENIZER, Folder
from llmtrain_trainer.data.chat_template import template_of
from llmtrain_trainer.data.model_files import with_template
from llmtrain_trainer.data.tokenizer import end_token, open_tokenizer
from llmtrain_trainer.data.tokenizer_settings import (
    TEMPLATE,
    TOKENIZER_CONFIG,
    json_of,
    read_settings,
    settings_files,
    to_json,
)


def tokenizer_files(tokenizer: Folder, length: int) -> dict[str, bytes]:
    """Return the files of a tokenizer and of its settings, by name.

    `length` is the length of the model's sequences. A tokenizer without `tokenizer_config.json` is
    taken for one that was trained here: the token that ends documents also begins texts.
    """
    loaded, settings = open_tokenizer(tokenizer), read_settings(tokenizer)
    found = with_template(settings_files(tokenizer), loaded, template_of(settings), settings)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if TOKENIZER_CONFIG in found:
        config = json_of(found[TOKENIZER_CONFIG])
    else:
        end = loaded.id_to_token(end_token(loaded))
        config |= {"eos_token": end}
        if TEMPLATE not in found:  # a template of a tokenizer without BOS was rendered without it
            config["bos_token"] = end
    config["model_max_length"] = length
    found[TOKENIZER_CONFIG] = to_json(config)
    return {TOKENIZER: tokenizer.read_bytes(), **found}


def special_ids(tokenizer: Folder) -> tuple[int | None, int | None]:
    """Return the ids of the BOS and EOS tokens; of the end token, if the settings name none."""
    loaded, settings = open_tokenizer(tokenizer), read_settings(tokenizer)
    end = end_token(loaded, settings.eos)
    bos = loaded.token_to_id(settings.bos) if settings.bos else None
    eos = loaded.token_to_id(settings.eos) if settings.eos else None
    if not settings.tokens:
        bos = end
    return bos, end if eos is None else eos
