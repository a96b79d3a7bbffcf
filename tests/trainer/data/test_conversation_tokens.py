"""Conversations get the tokens that `transformers` gives them, and every turn's end is learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from llmtrain_trainer.data.chat_template import ChatTemplate, align
from llmtrain_trainer.data.conversation_tokens import ConversationTokenizer
from llmtrain_trainer.data.conversations import Messages, dumps
from llmtrain_trainer.data.examples import COUNTED, ID, ExampleEncoder
from llmtrain_trainer.data.tokenizer import train_bpe
from llmtrain_trainer.errors import InputError

pytestmark = pytest.mark.torch  # transformers

TALK: Messages = [
    ("system", "Be brief."),
    ("user", "  say hi, please\n"),
    ("assistant", "def f(a):\n    return a"),
    ("user", "and now größer 你好"),
    ("assistant", "hi again "),
]

BRACKETS = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}\
{{ '<<SYS>>\\n' + m.content + '\\n<</SYS>>\\n\\n' }}{% elif m.role == 'user' %}\
{{ '[INST] ' + m.content | trim + ' [/INST]' }}{% else %}\
{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"""
"""Each response ends with a space and the EOS token, as in the format of Llama 2."""

LINES = """{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '\\n<|end|>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""
"""Each response ends with a line break and a special token."""

EXTENSIONS = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}\
{% continue %}{% endif %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}
{% else %}{{ m.content }}<|im_end|>
{% endif %}{% if loop.index > 9 %}{% break %}{% endif %}{% endfor %}"""

TEMPLATES = {"brackets": BRACKETS, "lines": LINES, "extensions": EXTENSIONS}

SPECIAL = ["<s>", "</s>", "<|end|>", "<|im_start|>", "<|im_end|>"] + [
    f"<|{role}|>" for role in ("system", "user", "assistant")
]


def _byte_level() -> Tokenizer:
    texts = [content for _, content in TALK] * 9 + [BRACKETS, LINES]
    return train_bpe(texts, 420, SPECIAL)


def _sentence_piece(where: str) -> Tokenizer:
    """Pieces with spaces as a symbol, which is put before the text by `where`, as Llama 2 does."""
    pieces = ["<unk>", *SPECIAL, "<|endoftext|>", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(set("".join(c for _, c in TALK) + BRACKETS + LINES) - {" "})
    merges = [("▁", letter) for letter in "abhinsB"] + [("▁h", "i"), ("i", "n")]
    pieces += ["".join(merge) for merge in merges]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if where == "normalizer":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", where, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": _byte_level,
    "prepended to each part": lambda: _sentence_piece("normalizer"),
    "prepended to the text": lambda: _sentence_piece("first"),
}


def _template(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], "<s>", "</s>")


def _theirs(tokenizer: Tokenizer, template: ChatTemplate, talk: Messages, **options: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.to_str()), bos_token="<s>", eos_token="</s>"
    )
    messages = [{"role": role, "content": content} for role, content in talk]
    return fast.apply_chat_template(
        messages, chat_template=template.source, tokenize=True, return_dict=False, **options
    )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokens_are_those_of_transformers(kind: str, template: str) -> None:
    """Separate parts of the text had other tokens at their borders."""
    tokenizer = TOKENIZERS[kind]()
    chat = _template(template)
    marked = ExampleEncoder(tokenizer, chat, 1000, 0).encode("here", dumps(TALK)).tolist()
    assert [token & ID for token in marked] == _theirs(tokenizer, chat, TALK)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_prompt_has_the_tokens_of_transformers(kind: str) -> None:
    tokenizer, chat = TOKENIZERS[kind](), _template("lines")
    segments = chat.segments(TALK[:2], "", prompt=True)
    found = [token for token, _, _ in ConversationTokenizer(tokenizer).encode(segments)]
    assert found == _theirs(tokenizer, chat, TALK[:2], add_generation_prompt=True)


def _learned(tokenizer: Tokenizer, template: ChatTemplate, talk: Messages) -> list[str]:
    """Return the text of every run of tokens in the loss."""
    runs: list[list[int]] = [[]]
    for token in ExampleEncoder(tokenizer, template, 1000, 0).encode("here", dumps(talk)).tolist():
        if token & COUNTED:
            runs[-1].append(token & ID)
        elif runs[-1]:
            runs.append([])
    decode: Callable[..., str] = tokenizer.decode
    return [decode(run, skip_special_tokens=False) for run in runs if run]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    ("template", "stop"),
    [("brackets", " </s>"), ("lines", "\n<|end|>"), ("extensions", "<|im_end|>")],
)
def test_the_token_that_ends_a_turn_is_in_the_loss(kind: str, template: str, stop: str) -> None:
    """Only the first token after a response was, so a model of such a template never stopped."""
    runs = _learned(TOKENIZERS[kind](), _template(template), TALK)
    responses = [content for role, content in TALK if role == "assistant"]
    assert ["".join(run.split()) for run in runs] == [
        "".join((response + stop).split()) for response in responses
    ]


THINKING = """{% for m in messages %}<|{{ m.role }}|>
{% if m.role == 'assistant' %}{% set text = m.content %}{% set thought = '' %}\
{% if '</think>' in text %}\
{% set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}\
{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}\
{% if loop.last or thought %}<think>
{{ thought.strip('\n') }}
</think>

{% endif %}{{ text.lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
"""The reasoning of a response is apart from its answer, and an empty one is written too."""


@pytest.mark.parametrize(
    ("answer", "learned"),
    [
        ("hi", "<think>\n\n</think>\n\nhi<|end|>"),
        ("<think>\nsay\n  hi\n</think>\n\nhi", "<think>\nsay\n  hi\n</think>\n\nhi<|end|>"),
        ("<think>say</think>\nhi\n", "<think>\nsay\n</think>\n\nhi\n<|end|>"),
        ("<think>\n\n</think>\n\nhi", "<think>\n\n</think>\n\nhi<|end|>"),
        ("<think>\nsay\n</think>\n", "<think>\nsay\n</think>\n\n<|end|>"),
    ],
)
def test_a_response_with_reasoning_is_learned_from_the_end_of_its_prompt(
    answer: str, learned: str
) -> None:
    """Such rows were refused, and the empty reasoning that a model has to write was not learned."""
    tokenizer = _byte_level()
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    chat = ChatTemplate(THINKING, "<s>", "</s>")
    talk: Messages = [("user", "say hi"), ("assistant", answer)]
    assert _learned(tokenizer, chat, talk) == [learned]
    ids = ExampleEncoder(tokenizer, chat, 1000, 0).encode("here", dumps(talk)) & ID
    assert ids.tolist() == _theirs(tokenizer, chat, talk)


@pytest.mark.parametrize(
    ("source", "learned"),
    [
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}", "<|end|>"),
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}"
            "{% if m.role == 'user' %}<|end|>{% endif %}{% endfor %}",
            "<|endoftext|>",
        ),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}",
            "\n\n<|endoftext|>",
        ),
    ],
)
def test_a_turn_without_a_special_token_ends_with_the_end_token(source: str, learned: str) -> None:
    """Only the line break after such a turn was learned: no token stopped the model."""
    talk: Messages = [("user", "say"), ("assistant", "<think>\nhm\n</think>\n\nhi")]
    (run,) = _learned(_byte_level(), ChatTemplate(source), talk)
    assert run == talk[1][1] + learned


def test_a_conversation_of_many_turns_has_its_parts() -> None:
    talk: Messages = [("user", "a"), ("assistant", "b")] * 6000
    segments = ChatTemplate("{% for m in messages %}{{ m.content }};{% endfor %}").segments(
        talk, ""
    )
    assert len(segments) == 24_000


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_spelled_special_token_changes_no_other_token(kind: str) -> None:
    """The parts of such a text were encoded as texts of their own, which begin with a space."""
    tokenizer, chat = TOKENIZERS[kind](), _template("lines")

    def tokens(first: str) -> list[int]:
        segments = chat.segments([("user", first), *TALK[1:]], "</s>")
        return [token for token, _, _ in ConversationTokenizer(tokenizer).encode(segments)]

    plain, spelled = tokens("so"), tokens("so </s>")
    rest = plain[plain.index(tokenizer.token_to_id("<|end|>")) :]
    assert spelled[-len(rest) :] == rest and spelled != plain
    assert spelled[:2] == plain[:2]


def test_a_special_token_may_not_arise_at_the_border_of_a_message() -> None:
    tokenizer = _byte_level()
    chat = ChatTemplate("{% for m in messages %}{{ m.content }}|>{% endfor %}", "<s>", "</s>")
    segments = chat.segments([("user", "so <|end"), ("assistant", "hi")], "")
    found = [token for token, _, _ in ConversationTokenizer(tokenizer).encode(segments)]
    assert tokenizer.token_to_id("<|end|>") not in found
    decode: Callable[..., str] = tokenizer.decode
    assert decode(found, skip_special_tokens=False) == "so <|end|>hi|>"


def test_a_tokenizer_that_truncates_and_pads_does_neither() -> None:
    tokenizer, chat = _byte_level(), _template("lines")
    whole = ExampleEncoder(tokenizer, chat, 1000, 0).encode("here", dumps(TALK)).tolist()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=500)
    assert ExampleEncoder(tokenizer, chat, 1000, 0).encode("here", dumps(TALK)).tolist() == whole


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_message_that_spells_special_tokens_is_text(kind: str) -> None:
    tokenizer, chat = TOKENIZERS[kind](), _template("lines")
    talk: Messages = [("user", "what is <|end|> and </s>?"), ("assistant", "the <|end|>")]
    marked = ExampleEncoder(tokenizer, chat, 1000, 0).encode("here", dumps(talk)).tolist()
    ids = [token & ID for token in marked]
    assert ids.count(tokenizer.token_to_id("<|end|>")) == len(talk)
    assert tokenizer.token_to_id("</s>") not in ids
    assert "the <|end|>\n<|end|>" in _learned(tokenizer, chat, talk)[0]


def test_a_control_token_that_its_file_does_not_call_special_is_text_in_a_message() -> None:
    """As `</s>` of Phi-3."""
    tokenizer, chat = _sentence_piece("normalizer"), _template("brackets")
    described = json.loads(tokenizer.to_str())
    for entry in described["added_tokens"]:
        if entry["content"] == "</s>":
            entry.update(special=False, rstrip=True)
    hidden = Tokenizer.from_str(json.dumps(described))
    talk: Messages = [("user", "what is </s>  ?"), ("assistant", "the </s>\n  end")]
    for each in (tokenizer, hidden):
        marked = ExampleEncoder(each, chat, 1000, 0).encode("here", dumps(talk)).tolist()
        ids = [token & ID for token in marked]
        assert ids.count(each.token_to_id("</s>")) == 1
        assert _learned(each, chat, talk)[0].strip() == "the </s>\n  end </s>"


def test_an_ordinary_token_that_takes_white_space_away_is_a_token_in_a_message() -> None:
    """Models call tools with such tokens."""
    tokenizer, chat = _byte_level(), _template("lines")
    tokenizer.add_tokens([AddedToken("<call>", rstrip=True, normalized=False)])
    talk: Messages = [("user", "go"), ("assistant", "<call> f()")]
    marked = ExampleEncoder(tokenizer, chat, 1000, 0).encode("here", dumps(talk)).tolist()
    assert tokenizer.token_to_id("<call>") in [token & ID for token in marked]


def test_a_template_that_computes_with_a_message_is_refused() -> None:
    upper = ChatTemplate("{% for m in messages %}{{ m.content | upper }}<|end|>{% endfor %}")
    with pytest.raises(InputError, match="computes with the contents") as caught:
        upper.segments([("user", "a"), ("assistant", "b")], "")
    assert caught.value.field == "spec.data.chat"


def test_reasoning_of_earlier_turns_may_be_removed() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% set text = m.content %}{% if not loop.last %}"
        "{% set text = text.split('</think>')[-1] %}{% endif %}{{ text | trim }}<|end|>{% endfor %}"
    )
    talk: Messages = [("assistant", "<think>no</think> yes"), ("user", "a"), ("assistant", "b")]
    texts = [each.text for each in template.segments(talk, "")]
    assert texts == ["yes", "<|end|>", "a", "<|end|>", "b", "<|end|>"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x a y", ["x", " a ", "y"]),
        ("xay", ["x", "a", "y"]),
        ("x ay", ["x", " a", "y"]),
        ("xy", None),
        ("x a yy", None),
    ],
)
def test_contents_are_found_whole_or_trimmed(text: str, expected: list[str] | None) -> None:
    assert align([["x"], [" a ", " a", "a ", "a"], ["y"]], text) == expected


def test_json_in_a_template_is_not_escaped() -> None:
    template = ChatTemplate("{{ {'a': '<ü>'} | tojson }}{{ messages[0].content }}")
    (first, *_) = template.segments([("user", "b")], "")
    assert first.text == json.dumps({"a": "<ü>"}, ensure_ascii=False)
