"""Conversations with tools: the text of `transformers`, calls in the loss, causes of refusals."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from llmtrain_trainer.config import ChatConfig, DataConfig, Source
from llmtrain_trainer.data.chat_template import ChatTemplate, preset_template
from llmtrain_trainer.data.conversations import dumps_turns, loads, tool_use_of
from llmtrain_trainer.data.examples import COUNTED, ID, ExampleEncoder
from llmtrain_trainer.data.left_out import sentences
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.run import run_share
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.prepared import read_manifest
from llmtrain_trainer.data.readers.conversation_rows import turns_of
from llmtrain_trainer.data.readers.tool_rows import tools_of, without_nulls
from llmtrain_trainer.data.tokenizer import train_bpe
from llmtrain_trainer.errors import InputError
from tests.support.trainer.published_texts import sample_template
from tests.support.trainer.their_templates import rendered

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather of a "city" <now>.',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


def call(*cities: str) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call{number:05}",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": city, "days": 2}},
        }
        for number, city in enumerate(cities)
    ]


def answer(text: str) -> dict[str, Any]:
    return {"role": "tool", "name": "weather", "tool_call_id": "call00000", "content": text}


ROW: dict[str, Any] = {
    "tools": [TOOL],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is Köln?"},
        {"role": "assistant", "content": "", "tool_calls": call("Köln")},
        answer('{"sky":  "grey"}'),
        {"role": "assistant", "content": "Grey."},
        {"role": "user", "content": "And Rome?"},
        {"role": "assistant", "content": "", "tool_calls": call('Rome\n"old"')},
        answer("sunny"),
        {"role": "assistant", "content": "Sunny."},
    ],
}
TEMPLATES = {
    "qwen3": "<|im_end|>",
    "qwen2_5": "<|im_end|>",
    "llama3_1": "<|eot_id|>",
    "glm4moe": "<|observation|>",
    "gptoss": "<|call|>",
    "nemotron_3_nano": "<|im_end|>",
}
"""Name of a template -> token that ends a turn with calls. In GLM, the next turn begins with it."""


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose arguments are JSON, as in APIs."""
    row = deepcopy(row)
    for message in row["messages"]:
        for each in message.get("tool_calls", ()):
            each["function"]["arguments"] = json.dumps(each["function"]["arguments"])
    return row


def text_of(source: str, row: dict[str, Any]) -> str:
    said = dumps_turns(turns_of(row), tools_of(row))
    segments = ChatTemplate(source, "<s>").segments(loads(said), "</s>", use=tool_use_of(said))
    return "".join(segment.text for segment in segments)


@pytest.mark.parametrize("name", TEMPLATES)
def test_tools_are_rendered_as_in_transformers(name: str) -> None:
    source = sample_template(name)
    expected = rendered(source, ROW["messages"], ROW["tools"], bos_token="<s>", eos_token="</s>")
    assert expected is not None and "Rome" in expected
    assert text_of(source, ROW) == expected
    assert text_of(source, as_json(ROW)) == expected


@pytest.mark.parametrize("name", ["qwen3", "glm4moe"])
def test_a_response_can_have_a_content_and_calls(name: str) -> None:
    source, row = sample_template(name), deepcopy(ROW)
    row["messages"][6]["content"] = "I look."
    expected = rendered(source, row["messages"], row["tools"], bos_token="<s>", eos_token="</s>")
    assert expected is not None and text_of(source, row) == expected
    found = learned(source, row)[2]
    assert found.index("I look.") < found.index("Rome")
    assert found.endswith(TEMPLATES[name])


@pytest.mark.parametrize("content", [None, "", " ", [], [{"type": "text", "text": ""}]])
def test_a_response_with_calls_needs_no_content(content: Any) -> None:
    said = {"role": "assistant", "content": content, "tool_calls": call("Köln")}
    (turn,) = turns_of({"messages": [said]})
    kept = "" if isinstance(content, list) else content
    assert turn.text == "" and turn.fields == {"content": kept, "tool_calls": call("Köln")}


@pytest.mark.parametrize("name", ["llama3_1", "gptoss"])
def test_a_content_that_the_template_leaves_out_beside_calls_is_refused(name: str) -> None:
    row = deepcopy(ROW)
    row["messages"][6]["content"] = "I look."
    with pytest.raises(InputError, match="leaves out the content of a call"):
        text_of(sample_template(name), row)


def test_a_template_for_arguments_as_json_gets_them_so() -> None:
    source = sample_template("deepseekv3")
    row = as_json({**ROW, "messages": ROW["messages"][:5]})
    for message in row["messages"]:
        message["content"] = message["content"] or None  # as this template wants it
    expected = rendered(source, row["messages"], bos_token="<s>", eos_token="</s>")
    assert expected is not None and '{"city": "K\\u00f6ln", "days": 2}' in expected
    assert text_of(source, {"messages": row["messages"]}) == expected
    with pytest.raises(InputError, match="leaves out the description of a tool"):
        text_of(source, row)
    with pytest.raises(InputError, match="can only concatenate str"):
        text_of(source, {**ROW, "messages": [*row["messages"][:2], *ROW["messages"][2:5]]})


def learned(source: str, row: dict[str, Any]) -> list[str]:
    """Return the runs of tokens in the loss as text."""
    template = ChatTemplate(source, "<s>", "</s>")
    special = [*template.special_tokens(), *TEMPLATES.values(), "</s>"]
    tokenizer = train_bpe([json.dumps(ROW)] * 9, 400, special)
    said = dumps_turns(turns_of(row), tools_of(row))
    marked = ExampleEncoder(tokenizer, template, 4000).encode("here", said).tolist()
    runs: list[list[int]] = [[]]
    for token in marked:
        if token & COUNTED:
            runs[-1].append(token & ID)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_are_learned_to_the_end_of_their_turn(name: str) -> None:
    found = learned(sample_template(name), ROW)
    assert len(found) == 4
    for run, place in zip(found, ("Köln", "Grey.", "Rome", "Sunny."), strict=True):
        assert place in run
        assert "grey" not in run and "How is" not in run and "And Rome" not in run
        assert not run.startswith("<|im_start|>")
    assert all(found[number].endswith(TEMPLATES[name]) for number in (0, 2))


def test_a_call_of_weight_0_is_not_learned() -> None:
    row = deepcopy(ROW)
    row["messages"][2]["weight"] = 0
    found = learned(sample_template("qwen3"), row)
    assert len(found) == 3 and "Köln" not in "".join(found)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (ROW["messages"], "leaves out or changes the answer of a tool"),
        (ROW["messages"][:2] + ROW["messages"][4:5], "leaves out the description of a tool"),
    ],
)
def test_a_template_without_tools_refuses_them(
    messages: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        text_of(sample_template("phi3_5"), {**ROW, "messages": messages})


def test_a_template_without_calls_refuses_them() -> None:
    row = {"messages": ROW["messages"][1:3]}
    with pytest.raises(InputError, match="leaves out the call of a tool"):
        text_of(sample_template("llama3"), row)


def test_special_tokens_in_tools_and_calls_are_refused() -> None:
    in_tool, in_call = deepcopy(ROW), deepcopy(ROW)
    in_tool["tools"][0]["function"]["description"] = "ends <|im_end|> here"
    in_call["messages"][2]["tool_calls"] = call("<|im_end|>")
    escaped = as_json(in_call)
    function = escaped["messages"][2]["tool_calls"][0]["function"]
    function["arguments"] = function["arguments"].replace("<", "\\u003c")
    for row in (in_tool, in_call, as_json(in_call), escaped):
        with pytest.raises(InputError, match="spells a special token"):
            learned(sample_template("qwen3"), row)


def test_columns_of_parquet_have_the_same_text(tmp_path: Path) -> None:
    """A column has every field of any row: those that are null are not there."""
    table = pyarrow.Table.from_pylist([ROW])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (row,) = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert row["messages"][0]["tool_calls"] is None
    found = without_nulls(row)
    source = sample_template("qwen3")
    assert text_of(source, found) == text_of(source, ROW)
    columns = {"messages": json.dumps(ROW["messages"]), "tools": json.dumps(ROW["tools"])}
    assert text_of(source, columns) == text_of(source, ROW)


def test_refused_tools_are_counted_with_their_cause(tmp_path: Path) -> None:
    good = [{"prompt": f"is {n} even", "response": f"it is {n}"} for n in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*good, ROW, ROW]))
    source = Source("s", f"file://{path}", "spec.data.sources[0].uri", format="chat")
    config = DataConfig((source,), 0.1, 400, 0, chat=ChatConfig(512, "chatml"))
    run_share(Workspace(plan_preparation(config), tmp_path / "out"))
    manifest = read_manifest(tmp_path / "out")
    counts = manifest["sources"][0]["documents"]
    # equal rows are one example
    assert counts["dropped"] == {"row: template": 1} and counts["exactDuplicate"] == 1
    assert counts["train"] + counts["heldOut"] == len(good)
    (line,) = [each for each in sentences(manifest) if "template" in each]
    assert "preset chatml: the template leaves out the description of a tool" in line


def test_a_template_of_the_project_writes_answers_of_tools() -> None:
    row = {"messages": [*ROW["messages"][1:2], answer("1"), {"role": "assistant", "content": "b"}]}
    said = dumps_turns(turns_of(row), tools_of(row))
    segments = preset_template("chatml").segments(loads(said), "</s>", use=tool_use_of(said))
    assert "<|im_start|>tool\n1<|im_end|>" in "".join(segment.text for segment in segments)
