"""More real text than `make test` has, end to end, and the tokenizers of published models.

Run by `make text-matrix`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain_trainer.data.tokenizer import largest_token, open_tokenizer
from tests.support.trainer import published_texts, real_corpora
from tests.support.trainer.end_to_end import (
    require_conversations,
    require_crawl,
    require_programs,
)

PROGRAMS = ["asyncio", "email", "encodings", "http", "json", "logging", "unittest", "xml"]
EVERY = 1000
"""More than there are files of one character set."""
TEMPLATE_TOKENS = 16
"""Room in the vocabulary for tokens of a template that the tokenizer lacks."""


def test_many_programs(tmp_path: Path) -> None:
    texts = real_corpora.programs([*PROGRAMS, "typing.py", "turtle.py"])
    documents = require_programs(tmp_path, texts, 4096)
    print(f"{sum(map(len, texts.values())) / 1e6:.1f} M characters of programs: {documents}")


@pytest.mark.parametrize("rules", ["none", "auto"])
def test_a_whole_crawl(tmp_path: Path, rules: str) -> None:
    responses = real_corpora.crawl(published_texts.web_texts(), EVERY)
    documents, kept = require_crawl(tmp_path, responses, rules, 4096)
    languages = {each.language for each in kept}
    print(f"{len(responses)} responses, filter {rules}: {documents} in {len(languages)} languages")
    assert len(languages) >= 10


@pytest.mark.parametrize("name", published_texts.VOCABULARIES)
def test_a_tokenizer_of_a_model(tmp_path: Path, name: str) -> None:
    """The trained tokens are decoded to the source text with each published tokenizer, too."""
    published_texts.published_tokenizer(name, tmp_path)
    path = tmp_path / "tokenizer.json"
    size = largest_token(open_tokenizer(path)) + 1
    texts = real_corpora.programs(["json", "email"])
    responses = real_corpora.crawl(published_texts.web_texts(), 4)
    (programs := tmp_path / "programs").mkdir()
    (crawl := tmp_path / "crawl").mkdir()
    documents = require_programs(programs, texts, size, path)
    counts, _ = require_crawl(crawl, responses, "none", size, path)
    print(f"{name}: {documents['train']} programs, {counts['train']} responses")


@pytest.mark.parametrize("name", ["Llama 3", "Qwen2", "Phi-3"])
def test_conversations_with_the_tokenizer_of_a_model(tmp_path: Path, name: str) -> None:
    published_texts.published_tokenizer(name, tmp_path)
    path = tmp_path / "tokenizer.json"
    size = largest_token(open_tokenizer(path)) + 1 + TEMPLATE_TOKENS
    template = {"Llama 3": "llama3_1", "Qwen2": "qwen2_5", "Phi-3": "phi3_5"}[name]
    conversations = real_corpora.sessions(real_corpora.programs(PROGRAMS))
    conversations += real_corpora.questions(published_texts.web_texts(), 10)
    documents = require_conversations(
        tmp_path, conversations, published_texts.sample_template(template), size, path
    )
    print(f"{name}: {len(conversations)} conversations: {documents}")
