"""Rows of common layouts are read, and an odd one is counted with its cause, not fatal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer

from llmtrain_trainer.config import ChatConfig, DataConfig, Source
from llmtrain_trainer.data.conversations import counted_turns, dumps_turns, loads
from llmtrain_trainer.data.examples import COUNTED, ID
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.run import run_share
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.prepare import prepare as job_data
from llmtrain_trainer.data.prepared import read_manifest
from llmtrain_trainer.data.readers.conversation_rows import turns_of
from llmtrain_trainer.data.readers.records import RowError
from llmtrain_trainer.data.readers.tool_rows import tools_of
from llmtrain_trainer.data.shards import TokenStream
from llmtrain_trainer.errors import InputError

Talk = list[tuple[str, str]]


def said(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


ASK: Talk = [("user", "a\n  b?"), ("assistant", " c\n")]
LAYOUTS: dict[str, tuple[dict[str, Any], Talk]] = {
    "messages": (
        {"messages": said(*ASK)},
        ASK,
    ),
    "response": ({"prompt": "a\n  b?", "response": " c\n"}, ASK),
    "completion": ({"prompt": "a\n  b?", "completion": " c\n"}, ASK),
    "lists": (
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "b"}],
        },
        [("system", "s"), ("user", "a"), ("assistant", "b")],
    ),
    "alpaca": ({"instruction": "a\n  b?", "input": "", "output": " c\n"}, ASK),
    "alpaca input": (
        {"instruction": "add", "input": "1 2", "output": "3"},
        [("user", "add\n\n1 2"), ("assistant", "3")],
    ),
    "sharegpt": (
        {
            "id": "x",
            "system": "s",
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
                {"from": "observation", "value": "c"},
                {"from": "gpt", "value": "d"},
            ],
        },
        [("system", "s"), ("user", "a"), ("assistant", "b"), ("tool", "c"), ("assistant", "d")],
    ),
    "tool": (
        {
            "messages": [
                {"role": "developer", "content": "s"},
                {"role": "user", "content": "a", "tool_calls": None},
                {"role": "assistant", "content": "call f", "tool_calls": []},
                {"role": "tool", "content": "1", "tool_call_id": "x"},
                {"role": "assistant", "content": "one"},
            ]
        },
        [
            ("system", "s"),
            ("user", "a"),
            ("assistant", "call f"),
            ("tool", "1"),
            ("assistant", "one"),
        ],
    ),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": each} for each in "ab"]},
                {"role": "assistant", "content": "c"},
            ]
        },
        [("user", "ab"), ("assistant", "c")],
    ),
    "empty system": (
        {"messages": said(("system", " "), *ASK)},
        ASK,
    ),
    "no tools": (
        {"messages": said(*ASK), "tools": []},
        ASK,
    ),
    "column of JSON": (
        {"messages": json.dumps(said(*ASK)), "tools": "[]"},
        ASK,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_common_data_sets(layout: str) -> None:
    row, talk = LAYOUTS[layout]
    assert loads(dumps_turns(turns_of(row))) == talk


def say(role: str = "assistant", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}, {"role": role, **fields}]}


CALL = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
ODD: dict[str, tuple[Any, str, str]] = {
    "calls of a user": (
        say("user", content="b", tool_calls=CALL),
        "tool calls",
        "a turn of the user has tool calls",
    ),
    "old call": (say(content=None, function_call={"name": "f"}), "tool calls", "an old form of"),
    "unnamed call": (say(tool_calls=[{"function": {}}]), "tool calls", "a call has no function"),
    "no list": (say(content="b", tool_calls={"name": "f"}), "tool calls", "tool_calls is not a"),
    "tools": ({**say(content="b"), "tools": [{"type": "function"}]}, "tools", "a tool has no func"),
    "broken tools": ({**say(content="b"), "tools": '[{"type"'}, "tools", "tools is not JSON"),
    "image": (
        say("user", content=[{"type": "image_url", "image_url": {}}]),
        "content",
        "a user turn has a part of the type 'image_url'",
    ),
    "null": (say(content=None), "null", "the content of an assistant turn is null"),
    "number": (say(content=5), "content", "is not a text"),
    "empty": (say(content="\n"), "empty", "a response is empty"),
    "role": (say("wizard", content="b"), "role", "the role 'wizard' is none of system, user"),
    "weight": (say(content="b", weight=0.5), "weight", "the weight 0.5 is neither 0 nor 1"),
    "all weights": (say(content="b", weight=0), "no response", "all responses have the weight 0"),
    "no output": ({"instruction": "a"}, "no response", "the instruction has no output"),
    "text": ({"text": "a"}, "fields", "it has neither prompt"),
}


@pytest.mark.parametrize("name", ODD)
def test_the_cause_of_an_odd_row_is_right(name: str) -> None:
    row, kind, message = ODD[name]
    with pytest.raises(RowError) as caught:
        tools_of(row)
        turns_of(row)
    assert caught.value.kind == kind
    assert message in str(caught.value)


def prepare(to: Path, path: Path, chat: ChatConfig | None, **changes: Any) -> dict[str, Any]:
    form = "chat" if chat else "auto"
    source = Source("s", f"file://{path}", "spec.data.sources[0].uri", format=form, **changes)
    run_share(Workspace(plan_preparation(DataConfig((source,), 0.1, 400, 0, chat=chat)), to))
    facts: dict[str, Any] = read_manifest(to)["sources"][0]
    return facts


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


LONG = {"prompt": "long", "response": "word " * 400}
GOOD = [{"prompt": f"is {n} even", "response": f"it is {n}"} for n in range(200)]


def test_odd_rows_are_counted_with_their_first_causes(tmp_path: Path) -> None:
    odd = [row for row, _, _ in ODD.values()]
    rows = [
        *GOOD[:50],
        *odd,
        *GOOD[50:],
        "{",
        say(content=None),
        say(content=None),
        say(content=None),
    ]
    facts = prepare(tmp_path / "out", write(tmp_path / "a.jsonl", rows), ChatConfig(128, "plain"))
    dropped = facts["dropped"]
    assert {kind: each["count"] for kind, each in dropped.items()} == {
        "content": 2,
        "empty": 1,
        "fields": 1,
        "json": 1,
        "no response": 2,
        "null": 4,
        "role": 1,
        "tool calls": 4,
        "tools": 2,
        "weight": 1,
    }
    assert dropped["null"]["first"] == [
        f"s/a.jsonl:{line}: the content of an assistant turn is null" for line in (58, 217, 218)
    ]
    documents = facts["documents"]
    assert documents["read"] == len(rows)
    assert documents["train"] + documents["heldOut"] == len(GOOD)
    assert documents["dropped"] == {f"row: {kind}": each["count"] for kind, each in dropped.items()}


def test_odd_rows_of_text_are_counted_in_every_format(tmp_path: Path) -> None:
    good = [{"text": f"text number {n} of all"} for n in range(40)]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", [*good, '{"text": ', {"text": None}, {"text": 5}, {"b": 1}])
    lines = ["text,n", *(f"cell {n} of the table,{n}" for n in range(40)), "one"]
    write(tmp_path / "in" / "b.csv", lines)
    table = pyarrow.table({"content": [*(f"row {n} of arrow" for n in range(40)), None]})
    pyarrow.parquet.write_table(table, tmp_path / "in" / "c.parquet")
    facts = prepare(tmp_path / "out", tmp_path / "in", None)
    found = {kind: each["first"] for kind, each in facts["dropped"].items()}
    assert found["cells"] == ["s/b.csv:41: it has 1 cells for 2 columns"]
    assert found["null"] == [
        "s/a.jsonl:42: its text is null",
        "s/c.parquet:41: its content is null",
    ]
    assert found["content"] == ["s/a.jsonl:43: its text is not a string"]
    assert found["fields"] == ["s/a.jsonl:44: it has no field text or content"]
    assert found["json"][0].startswith("s/a.jsonl:41: it is not JSON: ")
    documents = facts["documents"]
    assert documents["read"] == 126
    assert sum(documents["dropped"].values()) == 6


def test_the_log_of_a_job_says_what_was_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*GOOD, "{", LONG])
    source = Source("s", f"file://{path}", "s", format="chat")
    config = DataConfig((source,), 0.1, 400, 0, chat=ChatConfig(64, "plain"))
    lines: list[str] = []
    data = job_data(config, 64, tmp_path / "work", write_line=lines.append)
    assert lines[0] == "data: prepared with format 3; s: cleaning none"
    assert lines[1].startswith("data: s: dropped 1 (json): s/a.jsonl:201: it is not JSON: ")
    assert lines[2].startswith("data: s: dropped 1 (overlong): s/a.jsonl:202 has ")
    assert len(lines) == 4
    assert lines[3] == "data: the chat template is that of preset plain"

    again: list[str] = []
    tokens = Source("s", f"file://{data.folder}", "s", format="tokens")
    prepared = DataConfig((tokens,), 0.1, 400, 0, chat=ChatConfig(64, "plain"))
    job_data(prepared, 64, tmp_path / "work", write_line=again.append)
    assert again == lines


def test_too_many_odd_rows_are_an_error_with_their_causes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*GOOD[:80], *[{"prompt": "why"}] * 20])
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / "out", path, ChatConfig(128, "plain"))
    error = caught.value
    assert (error.reason, error.field) == ("CorpusUnreadable", "spec.data.sources[0].uri")
    assert "20 of 100 rows cannot be used: 20 no response (s/a.jsonl:81: " in error.message
    assert "maxUnusableRows" in str(error.remedy)
    # the work that was done is kept
    facts = prepare(tmp_path / "out", path, ChatConfig(128, "plain"), max_unusable_rows=0.2)
    assert facts["documents"]["dropped"] == {"row: no response": 20}


def test_long_examples_are_left_out_or_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*GOOD, LONG, {"prompt": "long " * 400, "response": "word"}])
    facts = prepare(tmp_path / "drop", path, ChatConfig(64, "plain"))
    assert facts["dropped"]["overlong"]["count"] == 2 and facts["truncated"] == 0
    assert facts["dropped"]["overlong"]["first"][0].startswith("s/a.jsonl:201 has ")
    documents = facts["documents"]
    assert documents["train"] + documents["heldOut"] + 2 == documents["read"] == 202

    with pytest.raises(InputError, match="other sources or settings"):
        prepare(tmp_path / "drop", path, ChatConfig(64, "plain", overlong="truncate"))
    facts = prepare(tmp_path / "cut", path, ChatConfig(64, "plain", overlong="truncate"))
    assert facts["truncated"] == 1
    assert facts["documents"]["dropped"] == {"row: overlong": 1}  # its responses are cut off


def test_an_example_that_the_template_refuses_is_left_out(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}"
        "{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    system = {
        "messages": [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    }
    path = write(tmp_path / "a.jsonl", [*GOOD, system])
    facts = prepare(tmp_path / "out", path, ChatConfig(64, template=template))
    assert facts["dropped"]["template"]["count"] == 1
    assert "no system turn" in facts["dropped"]["template"]["first"][0]


def test_a_message_of_weight_0_is_not_in_the_loss(tmp_path: Path) -> None:
    def talk(number: int) -> dict[str, Any]:
        return {
            "messages": [
                {"role": "user", "content": f"first {number}", "weight": 1},
                {"role": "assistant", "content": "bad", "weight": 0},
                {"role": "user", "content": "second"},
                {"role": "assistant", "content": "good", "weight": 1},
            ]
        }

    assert counted_turns(dumps_turns(turns_of(talk(1)))) == [False, False, False, True]
    path = write(tmp_path / "a.jsonl", [talk(number) for number in range(9)])
    prepare(tmp_path / "out", path, ChatConfig(64, "plain"))
    stream = TokenStream(tmp_path / "out" / "s", "train", 1 << 32)
    tokens = stream.read(0, len(stream))
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    counted = tokens[(tokens & COUNTED) != 0] & ID
    learnt = tokenizer.decode(counted.tolist(), skip_special_tokens=False)
    assert "good" in learnt and "bad" not in learnt
    assert "bad" in tokenizer.decode((tokens & ID).astype(np.int64).tolist())
