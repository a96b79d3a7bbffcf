"""Real corpora end to end: what the loader yields is the source text, but for what is counted.

`make text-matrix` has more text and all tokenizers.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.trainer import published_texts, real_corpora
from tests.support.trainer.end_to_end import (
    require_conversations,
    require_crawl,
    require_programs,
)

pytestmark = pytest.mark.torch  # batches are tensors

MODULES = ["collections", "difflib.py", "doctest.py", "enum.py", "fractions.py", "statistics.py"]


def test_programs_in_parquet(tmp_path: Path) -> None:
    texts = real_corpora.programs(["json", "encodings", "email", "operator.py"])
    documents = require_programs(tmp_path, texts)
    assert documents["nearDuplicate"] > 40  # encodings are made from one template
    assert documents["dropped"] == {"empty": 1}  # email/mime/__init__.py


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "phi3_5"])
def test_conversations_in_json_lines(tmp_path: Path, name: str) -> None:
    conversations = real_corpora.sessions(real_corpora.programs(MODULES))
    conversations += real_corpora.questions(published_texts.web_texts(), 2)
    template = published_texts.sample_template(name)
    documents = require_conversations(tmp_path, conversations, template)
    assert documents["train"] + documents["heldOut"] > 60
    assert documents["dropped"].keys() <= {"row: overlong"}


@pytest.mark.parametrize("rules", ["none", "auto"])
def test_a_crawl_in_many_languages_and_character_sets(tmp_path: Path, rules: str) -> None:
    responses = real_corpora.crawl(published_texts.web_texts(), 3)
    documents, kept = require_crawl(tmp_path, responses, rules)
    assert len({each.charset for each in responses}) > 10
    assert len({each.language for each in kept}) >= 5
    assert len({each.charset for each in kept}) >= 4
    assert bool(documents["dropped"]) == (rules == "auto")
