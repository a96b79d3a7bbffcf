"""Conversations: what counts, what is held out, and what is refused with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.config import ChatConfig, DataConfig, Source
from llmtrain_trainer.data.chat_template import (
    PRESETS,
    ChatTemplate,
    preset_template,
    template_of,
)
from llmtrain_trainer.data.conversations import dumps
from llmtrain_trainer.data.examples import ExampleEncoder, ExampleStream
from llmtrain_trainer.data.prepare import PreparedData, prepare
from llmtrain_trainer.data.tokenizer import add_special, train_bpe
from llmtrain_trainer.data.tokenizer_settings import read_settings
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.ignore_index import IGNORE_INDEX

pytestmark = pytest.mark.torch  # batches are tensors

TALK = [
    ("system", "be brief"),
    ("user", "say <|im_end|> hi"),
    ("assistant", "hi there"),
    ("user", "again"),
    ("assistant", "hi again"),
]

TEXTS = [" ".join(content for _, content in TALK)] * 9


def counted(template: ChatTemplate) -> tuple[str, list[str]]:
    """Return the whole text of TALK under a template, and its runs of counted tokens."""
    from llmtrain_trainer.data.examples import COUNTED, ID

    tokenizer = train_bpe(TEXTS, 300, template.special_tokens())
    marked = ExampleEncoder(tokenizer, template, 200).encode("here", dumps(TALK)).tolist()
    runs: list[list[int]] = [[]]
    for token in marked:
        if token & COUNTED:
            runs[-1].append(token & ID)
        elif runs[-1]:
            runs.append([])
    decode: Callable[..., str] = tokenizer.decode
    whole = decode([token & ID for token in marked], skip_special_tokens=False)
    return whole, [decode(run, skip_special_tokens=False) for run in runs if run]


@pytest.mark.parametrize(
    ("preset", "end", "start"),
    [
        ("plain", "<|endoftext|>", "be brief\nsay"),
        ("chatml", "<|im_end|>", "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nsay"),
        (
            "llama3",
            "<|eot_id|>",
            "<|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|>",
        ),
    ],
)
def test_responses_count_and_the_token_that_ends_them(preset: str, end: str, start: str) -> None:
    whole, runs = counted(preset_template(preset))
    assert whole.startswith(start)
    assert runs == ["hi there" + end, "hi again" + end]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_prompt_ends_where_a_response_begins(preset: str) -> None:
    """The prompts of two presets ended before the header of the response."""
    template = preset_template(preset)
    whole = template.segments(TALK[:3], "<|endoftext|>")
    prompt = template.segments(TALK[:2], "<|endoftext|>", prompt=True)
    start = next(place for place, each in enumerate(whole) if each.response == 2)
    assert whole[start].text == "hi there"
    texts = ["".join(each.text for each in some) for some in (whole[:start], prompt)]
    assert texts[0] == texts[1]


def test_a_text_that_spells_a_special_token_stays_text() -> None:
    template = preset_template("chatml")
    tokenizer = train_bpe(TEXTS, 300, template.special_tokens())
    ids = ExampleEncoder(tokenizer, template, 200).encode("here", dumps(TALK))
    end = tokenizer.token_to_id("<|im_end|>")
    assert sum((int(token) & (2**30 - 1)) == end for token in ids) == len(TALK)


def test_the_template_beside_the_tokenizer_is_used(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "chat_template": "{{ bos_token }}{% for m in messages %}"
                "[{{ m.role }}] {{ m.content|trim }}"
                "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}",
                "bos_token": {"content": "<|begin|>"},
                "eos_token": "<|finish|>",
            }
        )
    )
    template = template_of(read_settings(tmp_path / "tokenizer.json"))
    assert template is not None
    whole, runs = counted(template)
    assert whole.startswith("<|begin|>[system] be brief[user] say")
    # the space before a response is in the same token
    assert runs == [" hi there<|finish|>", " hi again<|finish|>"]
    assert template_of(read_settings(tmp_path / "elsewhere" / "tokenizer.json")) is None


def config(path: Path, longest: int = 64, **changes: Any) -> DataConfig:
    source = Source("pairs", f"file://{path}", "spec.data.sources[0].uri", format="chat")
    return DataConfig((source,), 0.25, 400, 3, chat=ChatConfig(longest, **changes))


def write(path: Path, *records: Any) -> Path:
    path.write_text(
        "\n".join(each if isinstance(each, str) else json.dumps(each) for each in records)
    )
    return path


def pair(number: int, response: str = "even") -> dict[str, str]:
    return {"prompt": f"is {number} even or odd", "response": response}


def test_every_example_is_a_sequence_of_its_own(tmp_path: Path) -> None:
    path = write(
        tmp_path / "pairs.jsonl", *[pair(n, "odd" if n % 2 else "even") for n in range(40)]
    )
    data = prepare(config(path), 64, tmp_path / "work")
    assert data.examples
    streams = [ExampleStream(data.folder / "pairs", part, 400) for part in ("train", "held-out")]
    assert [stream.windows(64) for stream in streams] == [30, 10]
    for stream in streams:
        for number in range(stream.windows(64)):
            tokens, targets = stream.window(number, 64)
            places = (targets != IGNORE_INDEX).nonzero()[0]
            assert len(places) == stream.loss_tokens(number, 64) >= 2
            assert (targets[places[:-1]] == tokens[places[:-1] + 1]).all()
            assert targets[places[-1]] == 0  # the token that ends documents


def test_equal_questions_are_held_out_together(tmp_path: Path) -> None:
    records = [pair(n, answer) for n in range(20) for answer in ("even", "odd", "both")]
    path = write(tmp_path / "pairs.jsonl", *records, *records)
    data = prepare(config(path), 64, tmp_path / "work")
    asked = []
    for part in ("train", "held-out"):
        stream = ExampleStream(data.folder / "pairs", part, 400)
        rows = [stream.window(number, 64) for number in range(stream.windows(64))]
        asked.append(
            [tuple(tokens[: (targets != IGNORE_INDEX).argmax()]) for tokens, targets in rows]
        )
    assert [len(each) for each in asked] == [45, 15]  # and equal pairs are there once
    assert not set(asked[0]) & set(asked[1])


BAD = {
    "no response": ({"prompt": "why"}, "the pair has no response"),
    "empty response": ({"prompt": "why", "response": " \n"}, "a response is empty"),
    "no answer": ({"messages": [{"role": "user", "content": "why"}]}, "no message has the"),
    "role": ({"messages": [{"role": "robot", "content": "x"}]}, "the role 'robot'"),
    "neither": ({"text": "why"}, "it has neither prompt and response nor messages"),
    "no JSON": ("{", "it is not JSON: Expecting property name"),
    "a list": ([], "it is not a JSON object"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named(name: str, tmp_path: Path) -> None:
    record, message = BAD[name]
    path = write(tmp_path / "pairs.jsonl", pair(1), record)
    with pytest.raises(InputError) as caught:
        prepare(config(path), 64, tmp_path / "work")
    assert (caught.value.reason, caught.value.field) == (
        "CorpusUnreadable",
        "spec.data.sources[0].uri",
    )
    assert f"pairs/pairs.jsonl:2: {message}" in caught.value.message
    assert f"({path.as_uri()}): 1 of 2 rows cannot be used: 1 " in caught.value.message


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        (
            {"template": "{{ messages[0]['content'] }}"},
            "spec.data.chat",
            ":1: the template yields no token that counts",
        ),
        ({"template": "{% for"}, "spec.data.chat", "the template cannot be read"),
        ({"template": "{{ messages.nothing.there }}"}, "spec.data.chat", "the template fails"),
        (
            {"template": "{{ raise_exception('no system turn') }}"},
            "spec.data.chat",
            "no system turn",
        ),
        ({"longest": 4}, "spec.model.architecture.sequenceLength", "pairs/pairs.jsonl:1 has "),
    ],
)
def test_what_cannot_be_an_example_is_refused(
    changes: dict[str, Any], field: str, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "pairs.jsonl", *[pair(1, answer) for answer in ("even", "odd")])
    with pytest.raises(InputError) as caught:
        prepare(config(path, **changes), 64, tmp_path / "work")
    assert caught.value.field == field
    assert message in caught.value.message
    assert caught.value.remedy


def test_special_tokens_need_room_in_the_vocabulary() -> None:
    wanted = preset_template("chatml").special_tokens()
    assert add_special(train_bpe(TEXTS, 270), wanted, 272) == 2
    with pytest.raises(InputError, match=r"lacks <\|im_start\|>, <\|im_end\|>"):
        add_special(train_bpe(TEXTS, 270), wanted, 271)


def test_prepared_examples_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", *[pair(n) for n in range(9)])
    data: PreparedData = prepare(config(path), 64, tmp_path / "work")
    source = Source("tokens", f"file://{data.folder}", "spec.data.sources[0].uri")
    with pytest.raises(InputError, match="was prepared for sft"):
        prepare(DataConfig((source,), 0.25, 400, 3), 4, tmp_path / "work")
    again = config(data.folder)
    assert prepare(again, 64, tmp_path / "work").digest == data.digest


def test_every_preset_is_in_the_contract() -> None:
    from llmtrain_core.api.job import Chat

    for name in PRESETS:
        assert Chat.from_wire({"preset": name}).preset == name
