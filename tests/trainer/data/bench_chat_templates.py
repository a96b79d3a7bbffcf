"""Every published template renders as in `transformers`, and its tokens are the same.

Run by `make text-matrix`: it downloads packages once. `make test` has templates of its own.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtrain_trainer.data.chat_template import ChatTemplate
from llmtrain_trainer.data.conversation_tokens import ConversationTokenizer
from llmtrain_trainer.data.conversations import (
    Messages,
    dumps,
    dumps_turns,
    loads,
    tool_use_of,
)
from llmtrain_trainer.data.examples import COUNTED, ID, ExampleEncoder
from llmtrain_trainer.data.readers.conversation_rows import turns_of
from llmtrain_trainer.data.tokenizer import train_bpe
from llmtrain_trainer.errors import InputError
from tests.support.trainer import published_texts
from tests.support.trainer.their_templates import rendered

TALKS: dict[str, Messages] = {
    "one turn": [("user", "  how are you?"), ("assistant", "fine ")],
    "turns": [
        ("user", "print 1"),
        ("assistant", "```python\n    print(1)\n```"),
        ("user", "größer 你好"),
        ("assistant", "ok"),
    ],
    "system": [("system", "Be brief."), ("user", "hi"), ("assistant", "hello")],
    "reasoning": [
        ("user", "why?"),
        ("assistant", "<think>\nso\n</think>\n\nthus"),
        ("user", "and?"),
        ("assistant", "<think>\nhm\n</think>\n\nso"),
    ],
}

MOST_UNUSABLE = 6
"""Templates that `transformers` refuses too: they need tools, or contents that are lists."""

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather of a "city".',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "its name"}},
            "required": ["city"],
        },
    },
}
LEAST_WITH_TOOLS = 75
"""Templates that render a conversation with a call, of those that read `tool_calls`."""

_SPECIAL = re.compile(r"<[|｜]?[\w/:▁-]+[|｜]?>|\[\|?/?[A-Za-z_~]+\|?\]|\[e~\[")
"""Texts in templates that are special tokens of some model."""


def _theirs(source: str, talk: Messages) -> str | None:
    messages = [{"role": role, "content": content} for role, content in talk]
    return rendered(source, messages, bos_token="<s>", eos_token="</s>")


def test_every_published_template_renders_as_in_transformers() -> None:
    found = published_texts.templates()
    verdicts: dict[str, Counter[str]] = {name: Counter() for name in found}
    reasons: dict[str, str] = {}
    for name, source in found.items():
        template = ChatTemplate(source, "<s>", "</s>")
        for talk in TALKS.values():
            expected = _theirs(source, talk)
            try:
                ours = "".join(segment.text for segment in template.segments(talk, "</s>"))
            except InputError as error:
                verdict = "refused" if expected is not None else "both refuse"
                reasons[name] = error.message
            else:
                verdict = "equal" if ours == expected else "different"
            verdicts[name][verdict] += 1
    total = sum(verdicts.values(), Counter[str]())
    unusable = sorted(name for name, each in verdicts.items() if not each["equal"])
    print(f"{len(found)} templates, {total.total()} conversations: {dict(total)}")
    for name in unusable:
        print(f"  {name}: {reasons[name]}")
    assert [name for name, each in verdicts.items() if each["different"] or each["refused"]] == []
    assert len(found) > 170 and len(unusable) <= MOST_UNUSABLE


def _called(content: str | None, city: str, as_json: bool) -> dict[str, Any]:
    arguments: Any = {"city": city}
    function = {"name": "get_weather", "arguments": json.dumps(arguments) if as_json else arguments}
    call = {"id": "abc123def", "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def _with_tools(content: str | None, as_json: bool) -> list[dict[str, Any]]:
    answer = {"role": "tool", "name": "get_weather", "tool_call_id": "abc123def", "content": "4"}
    return [
        {"role": "user", "content": "How is Köln?"},
        _called(content, "Köln", as_json),
        answer,
        {"role": "assistant", "content": "It is 4 degrees."},
        {"role": "user", "content": "And Rome?"},
        _called(content, "Rome", as_json),
    ]


def test_tools_are_rendered_as_in_transformers_or_refused() -> None:
    found = {
        name: text for name, text in published_texts.templates().items() if "tool_calls" in text
    }
    verdicts: dict[str, Counter[str]] = {name: Counter() for name in found}
    reasons: Counter[str] = Counter()
    for name, source in found.items():
        template = ChatTemplate(source, "<s>", "</s>")
        for content in ("", None, "I look."):
            for as_json in (False, True):
                messages = _with_tools(content, as_json)
                expected = rendered(source, messages, [TOOL], bos_token="<s>", eos_token="</s>")
                said = dumps_turns(turns_of({"messages": messages}), [TOOL])
                try:
                    use = tool_use_of(said)
                    segments = template.segments(loads(said), "</s>", use=use)
                    ours = "".join(segment.text for segment in segments)
                except InputError as error:
                    verdicts[name]["refused"] += 1
                    reasons[re.sub("(fails): .*", r"\1", error.message)] += 1
                    continue
                if as_json and ours != expected:  # most templates write JSON in JSON
                    messages = _with_tools(content, False)
                    expected = rendered(source, messages, [TOOL], bos_token="<s>", eos_token="</s>")
                verdicts[name]["equal" if ours == expected else "different"] += 1
    total = sum(verdicts.values(), Counter[str]())
    able = sum(each["equal"] > 0 for each in verdicts.values())
    print(f"{able} of {len(found)} templates render calls, {total.total()} rows: {dict(total)}")
    for reason, count in reasons.most_common():
        print(f"  {count} {reason}")
    assert [name for name, each in verdicts.items() if each["different"]] == []
    assert able >= LEAST_WITH_TOOLS


NAMED = {
    "llama_cpp_python/NVIDIA-Nemotron-Nano-v2.jinja",
    "llama_cpp_python/unsloth-Apriel-1.5.jinja",
}
"""Templates whose stop token was not in the loss."""
WITHOUT_STOP = {
    "axolotl/llava.jinja",
    "llama_cpp_python/llama-cpp-rwkv-world.jinja",
    "llama_cpp_python/tencent-Hy3.jinja",
}
"""Templates that write no added token after a response that others follow."""


def test_the_token_that_ends_a_turn_is_learned_with_every_template() -> None:
    """It is an added token of the template, or the end token if the template writes none."""
    found = published_texts.templates()
    special = sorted({name for source in found.values() for name in _SPECIAL.findall(source)})
    texts = [content for talk in TALKS.values() for _, content in talk] * 9
    tokenizer = train_bpe(texts, 300 + len(special), ["<s>", "</s>", *special])
    added = set(tokenizer.get_added_tokens_decoder())
    ends: Counter[str] = Counter()
    turns, other = 0, list[str]()
    for name, source in found.items():
        encoder = ExampleEncoder(tokenizer, ChatTemplate(source, "<s>", "</s>"), 10_000)
        for talk in TALKS.values():
            try:
                marked = encoder.encode("here", dumps(talk))
            except InputError:
                continue
            counted = (marked & COUNTED) > 0
            last = counted & ~np.append(counted[1:], False)
            *before, token = (marked[last] & ID).tolist()
            assert token in added, (source, talk)
            if not added.issuperset(before):
                other.append(name)
            turns += 1 + len(before)
            ends[str(tokenizer.id_to_token(token))] += 1
    assert found.keys() >= NAMED and set(other) == WITHOUT_STOP
    print(f"{turns} turns of {ends.total()} conversations; the last ones end with")
    print(dict(ends.most_common()))
    assert ends.total() > 4 * 165 and ends["<|endoftext|>"] < ends.total() / 20


@pytest.mark.parametrize("name", published_texts.VOCABULARIES)
def test_conversations_have_the_tokens_of_transformers(name: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    theirs = published_texts.published_tokenizer(name, tmp_path)
    backend = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    bos, eos = theirs.bos_token or "", theirs.eos_token
    ours = ConversationTokenizer(backend)
    compared = 0
    for source in published_texts.templates().values():
        template = ChatTemplate(source, bos, eos)
        for talk in TALKS.values():
            try:
                segments = template.segments(talk, eos)
            except InputError:
                continue
            text = "".join(segment.text for segment in segments)
            expected = theirs(text, add_special_tokens=False)["input_ids"]
            assert [token for token, _, _ in ours.encode(segments)] == expected, (source, talk)
            compared += 1
    print(f"{name}: {compared} conversations")
    assert compared > 600
