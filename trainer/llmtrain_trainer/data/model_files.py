"""The files beside a tokenizer, with the chat template and the stop tokens of a job."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer

from llmtrain_trainer.data.chat_template import ChatTemplate
from llmtrain_trainer.data.conversation_tokens import ConversationTokenizer
from llmtrain_trainer.data.tokenizer import end_token
from llmtrain_trainer.data.tokenizer_settings import (
    GENERATION_CONFIG,
    TEMPLATE,
    TOKENIZER_CONFIG,
    TokenizerSettings,
    json_of,
    to_json,
)
from llmtrain_trainer.errors import InputError

_TURN = [("user", "a"), ("assistant", "b")]
_PROBES = (2 * _TURN, _TURN)
"""Conversations that show what ends a turn. Some templates end it when the next one begins."""


def with_template(
    files: Mapping[str, bytes],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    settings: TokenizerSettings,
) -> dict[str, bytes]:
    """Return the files of a tokenizer with a template, and with the tokens that end generation.

    Without a template, that of the settings stays. The template is in a file of its own, which
    `transformers` prefers to the one in `tokenizer_config.json`.
    """
    found = dict(files)
    source = template.source if template is not None else settings.template
    if source is not None:
        found[TEMPLATE] = source.encode()
    if source is not None and TOKENIZER_CONFIG in found:
        config = json_of(found[TOKENIZER_CONFIG])
        config.pop("chat_template", None)
        found[TOKENIZER_CONFIG] = to_json(config)
    generation = json_of(found.get(GENERATION_CONFIG, b"{}"))
    stops = stop_tokens(tokenizer, template, settings)
    found[GENERATION_CONFIG] = to_json({**generation, "eos_token_id": stops})
    return found


def stop_tokens(
    tokenizer: Tokenizer, template: ChatTemplate | None, settings: TokenizerSettings
) -> list[int]:
    """Return the ids at which generation ends: of documents, of turns, and those of the model."""
    end = end_token(tokenizer, settings.eos)
    eos = tokenizer.token_to_id(settings.eos) if settings.eos else None
    found = [*settings.stop_tokens, end, eos]
    if template is not None:
        found += _stops_of_turns(tokenizer, template, str(tokenizer.id_to_token(end)))
    return list(dict.fromkeys(int(each) for each in found if each is not None))


def _stops_of_turns(tokenizer: Tokenizer, template: ChatTemplate, end: str) -> list[int | None]:
    for probe in _PROBES:
        try:
            segments = template.segments(probe, end)
        except InputError:  # a template for other messages: no reason not to copy the model
            continue
        return [each.stop for each in ConversationTokenizer(tokenizer).responses(segments)]
    return []
