"""From a real source to the text that is trained on: every difference is one that is counted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import decoders

from llmtrain_trainer.config import ChatConfig, DataConfig, Source
from llmtrain_trainer.data.left_out import tails
from llmtrain_trainer.data.prepare import prepare
from llmtrain_trainer.data.prepared import PreparedData, read_manifest
from llmtrain_trainer.data.tokenizer import END_OF_TEXT
from llmtrain_trainer.data.tokenizer_settings import read_settings
from tests.support.trainer import real_corpora
from tests.support.trainer.accounts import require_accounted, require_duplicates
from tests.support.trainer.real_corpora import WebText
from tests.support.trainer.their_templates import rendered
from tests.support.trainer.trained_text import (
    tokenizer_for,
    trained_documents,
    trained_examples,
)

LENGTH, CHAT_LENGTH = 128, 1024
_STOPS = re.compile(r"(?:<\|(?:im_end|eot_id|eom_id|end|endoftext|end_of_text)\|>|</s>)\Z")


def _prepared(
    folder: Path,
    path: Path,
    vocab_size: int,
    tokenizer: Path | None = None,
    chat: ChatConfig | None = None,
    **settings: Any,
) -> tuple[PreparedData, dict[str, Any]]:
    """Prepare one source; return the data and its manifest."""
    source = Source("s", f"file://{path}", "spec.data.sources[0].uri", **settings)
    uri = None if tokenizer is None else f"file://{tokenizer}"
    config = DataConfig((source,), 0.1, vocab_size, 3, tokenizer=uri, chat=chat)
    length = LENGTH if chat is None else CHAT_LENGTH
    data = prepare(config, length, folder / "prepared")
    return data, read_manifest(data.folder)


def _documents(
    data: PreparedData, manifest: dict[str, Any], vocab_size: int, expected: Sequence[str]
) -> list[str]:
    """Return the documents that the loader yields.

    The tokens after the last sequence are not trained on. The log says how many they are.
    """
    found = trained_documents(data, vocab_size, LENGTH)
    said = [line for line in tails(manifest, LENGTH) if f"the last {found.rest} of" in line]
    assert len(said) == (found.rest > 0)
    if not found.rest:
        return [*found.train, *found.held_out]
    *whole, cut = found.train
    cut = cut.rstrip("\ufffd")  # the bytes of a character may be tokens
    present = {_letters(text) for text in (*whole, *found.held_out)}
    (rest,) = {
        text
        for text in expected
        if _letters(text).startswith(_letters(cut)) and _letters(text) not in present
    }
    tokens = len(tokenizer_for(data).encode(_letters(rest)[len(_letters(cut)) :]).ids)
    assert tokens <= 2 * found.rest + 8 and found.rest <= 2 * tokens + 8
    return [*whole, rest, *found.held_out]


def _letters(text: str) -> str:
    """Return a text without its white space."""
    return "".join(text.split())


def require_programs(
    folder: Path,
    texts: Mapping[str, str],
    vocab_size: int = 512,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """Require that programs in Parquet are trained on as they are; return the counts."""
    path = folder / "programs.parquet"
    real_corpora.write_parquet(path, texts)
    data, manifest = _prepared(folder, path, vocab_size, tokenizer)
    expected = list(texts.values())
    found = _documents(data, manifest, vocab_size, expected)
    (source,) = manifest["sources"]
    require_accounted(source, expected, found)
    require_duplicates(source, expected, found)
    return dict(source["documents"])


def require_crawl(
    folder: Path,
    responses: Sequence[WebText],
    rules: str,
    vocab_size: int = 512,
    tokenizer: Path | None = None,
) -> tuple[dict[str, Any], list[WebText]]:
    """Require that a crawl is trained on as browsers show it, but for what the filter drops.

    Return the counts, and the responses that are trained on or held out.
    """
    path = folder / "crawl.warc.gz"
    real_corpora.write_warc(path, responses)
    data, manifest = _prepared(folder, path, vocab_size, tokenizer, filter=rules)
    expected = [each for each in responses if each.text is not None]
    # the layout of a real page is not known, its words are
    layouts = {each.words: each.text or "" for each in expected if each.words}
    texts = [each.text or "" for each in expected]
    found = [
        layouts.get(tuple(text.split()), text) if text not in texts else text
        for text in _documents(data, manifest, vocab_size, texts)
    ]
    (source,) = manifest["sources"]
    require_accounted(source, texts, found)
    if rules == "none":
        require_duplicates(source, texts, found)
    skipped = sum(facts["count"] for facts in source["skipped"].values())
    assert skipped == len(responses) - len(expected)
    assert sum(source["charsets"].values()) == len(expected)
    kept = set(found)
    return dict(source["documents"]), [each for each in expected if each.text in kept]


def require_conversations(
    folder: Path,
    conversations: Sequence[real_corpora.Conversation],
    template: str,
    vocab_size: int = 512,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """Require that conversations are trained on as `transformers` renders them.

    What is learned are the responses, each with the end of its turn. Return the counts. A tokenizer
    of sentence pieces adds spaces after special tokens: its text is compared without white space.
    """
    path = folder / "conversations.jsonl.gz"
    real_corpora.write_jsonl(path, real_corpora.rows(conversations))
    chat = ChatConfig(CHAT_LENGTH, template=template)
    data, manifest = _prepared(
        folder, path, vocab_size, tokenizer, chat, format="chat", max_unusable_rows=0.5
    )
    tokens = {"eos_token": END_OF_TEXT}
    tokens |= read_settings(tokenizer).tokens if tokenizer else {}
    texts = [rendered(template, each, **tokens) or "" for each in conversations]
    assert all(texts)
    own = tokenizer_for(data)
    shown = str if isinstance(own.decoder, decoders.ByteLevel) else _letters
    whole = {shown(text): text for text in texts}
    answers = {
        text: [shown(turn["content"].strip()) for turn in each if turn["role"] == "assistant"]
        for text, each in zip(texts, conversations, strict=True)
    }
    found = []
    for example in trained_examples(data, vocab_size, CHAT_LENGTH):
        text = whole[_whole(own, shown(example.text), whole)]
        assert len(answers[text]) == len(example.learned), (text, example.learned)
        for answer, learned in zip(answers[text], example.learned, strict=True):
            assert answer in shown(learned) and _STOPS.search(learned), (answer, learned)
        found.append(text)
    (source,) = manifest["sources"]
    require_accounted(source, texts, found)
    return dict(source["documents"])


def _whole(tokenizer: Any, text: str, expected: Mapping[str, Any]) -> str:
    """Return the rendered text of an example.

    It may lack a last token, which no input precedes and no target is, or more of them of one
    character; an end token may follow.
    """
    if (known := text.removesuffix(END_OF_TEXT)) in expected:
        return known
    present = text.rstrip("\ufffd")  # the bytes of a character may be tokens
    most = 1 if present == text else 4
    begun = [
        each
        for each in expected
        if each.startswith(present)
        and len(tokenizer.encode(each[len(present) :], add_special_tokens=False).ids) <= most
    ]
    assert text in expected or len(begun) == 1, text[-300:]
    return text if text in expected else begun[0]
