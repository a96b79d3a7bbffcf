"""Conversations have the tokens of `apply_chat_template` with the published tokenizer of GPT-2.

`make text-matrix` has more tokenizers and templates.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from llmtrain_trainer.data.chat_template import ChatTemplate
from llmtrain_trainer.data.conversation_tokens import ConversationTokenizer
from llmtrain_trainer.data.conversations import Messages
from tests.support.trainer import published_texts

pytestmark = pytest.mark.torch  # transformers

TALKS: dict[str, Messages] = {
    "programs": [
        ("system", "Be brief."),
        ("user", "  print 1, please\n"),
        ("assistant", "```python\n    if a:\n\treturn  1\n\n\n```"),
        ("user", "and 12345.67?"),
        ("assistant", "It's 1,234 isn't it? "),
    ],
    "languages": [
        ("user", "größer 你好 \U0001f600 \u00a0x"),
        ("assistant", "naïve العربية ไทย"),
    ],
}
SPECIAL = {
    "qwen3": ["<|im_start|>", "<|im_end|>"],
    "llama3_1": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "phi3_5": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "gemma3": ["<start_of_turn>", "<end_of_turn>"],
    "deepseekv3": ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"],
}
"""Templates, and the special tokens that they write."""


@pytest.mark.parametrize("added", [False, True], ids=["no special tokens", "special tokens"])
def test_conversations_have_the_tokens_of_transformers(added: bool, tmp_path: Path) -> None:
    theirs = published_texts.gpt2_tokenizer(tmp_path)
    assert theirs("Hello world")["input_ids"] == [15496, 995]
    first_added = len(theirs)
    if added:
        theirs.add_special_tokens({"additional_special_tokens": [*chain(*SPECIAL.values())]})
    ours = ConversationTokenizer(Tokenizer.from_str(theirs.backend_tokenizer.to_str()))
    for name in SPECIAL:
        source = published_texts.sample_template(name)
        template = ChatTemplate(source, theirs.bos_token, theirs.eos_token)
        for talk in TALKS.values():
            segments = template.segments(talk, theirs.eos_token)
            found = [token for token, _, _ in ours.encode(segments)]
            assert found == their_tokens(theirs, source, talk), (name, talk)
            assert (max(found) >= first_added) == added


def their_tokens(tokenizer: Any, source: str, talk: Messages) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in talk]
    found = tokenizer.apply_chat_template(messages, chat_template=source, return_dict=False)
    return [int(token) for token in found]
