"""White space is content: the tokens, decoded, are the text of the source."""

from __future__ import annotations

import ast
import email
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer

from llmtrain_trainer.config import ChatConfig, DataConfig, Source
from llmtrain_trainer.data.examples import ID
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.run import run_share
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.prepared import prepared_with, read_manifest
from llmtrain_trainer.data.readers.html import html_text
from llmtrain_trainer.data.readers.mediawiki import wiki_text
from llmtrain_trainer.data.shards import TokenStream

PROGRAMS = 27


def prepared(to: Path, source: Source, chat: ChatConfig | None = None) -> Path:
    config = DataConfig((source,), 0.1, 400, 0, chat=chat)
    run_share(Workspace(plan_preparation(config), to))
    return to


def texts(folder: Path) -> set[str]:
    """Return the decoded documents of the only source of prepared data."""
    manifest = read_manifest(folder)
    name = manifest["sources"][0]["name"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found: set[str] = set()
    for part in ("train", "held-out"):
        stream = TokenStream(folder / name, part, 1 << 32)
        tokens = stream.read(0, len(stream)) & ID
        ends = np.flatnonzero(tokens == 0)
        for document in np.split(tokens, ends + 1):
            if len(document):
                found.add(tokenizer.decode(document[:-1].tolist(), skip_special_tokens=False))
    return found


def programs() -> list[str]:
    """Return Python files of the standard library, which all parse."""
    root = Path(email.__file__).parent
    paths = [*sorted(root.glob("*.py")), *sorted(Path(logging.__file__).parent.glob("*.py"))]
    paths += sorted(Path(json.__file__).parent.glob("*.py"))
    found = [path.read_text() for path in paths]
    assert len(found) >= PROGRAMS
    return found[:PROGRAMS]


def test_programs_in_parquet_are_trained_as_they_are(tmp_path: Path) -> None:
    wanted = programs()
    pyarrow.parquet.write_table(pyarrow.table({"content": wanted}), tmp_path / "a.parquet")
    found = texts(prepared(tmp_path / "out", Source("code", f"file://{tmp_path}/a.parquet", "s")))
    assert found == set(wanted)
    assert all(ast.parse(text) for text in found)


@pytest.mark.parametrize(
    "text",
    ["def f(a):\n    n = len(a)\n", "- a\n  - b\n    - c", "a\tb\n\n\n\nc  d", "\u3000全角\u200b"],
)
def test_a_response_keeps_its_white_space(text: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"  n = {n}", "response": text + str(n)} for n in range(8)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    source = Source("pairs", f"file://{path}", "s", format="chat")
    found = texts(prepared(tmp_path / "out", source, ChatConfig(128, "plain")))
    assert found == {f"{row['prompt']}\n{row['response']}" for row in rows}


def test_cleaning_web_is_what_earlier_releases_did(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": " a \t b\r\n\n\n  c\x00"}) + '\n{"text": "d"}')
    source = Source("s", f"file://{path}", "s", cleaning="web")
    folder = prepared(tmp_path / "out", source)
    assert texts(folder) == {"a b\n\nc", "d"}
    assert read_manifest(folder)["sources"][0]["cleaning"] == "web"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (
            "<p>Try</p><pre><code>def f(a):\n    return a\n</code></pre><p>now</p>",
            "Try\n\ndef f(a):\n    return a\n\nnow",
        ),
        ("<p>a <code>x  =  1</code>,\n  b</p>", "a x  =  1, b"),
        ("<pre>\n  first\n\tsecond</pre>", "  first\n\tsecond"),
        ("<p>One\nsentence on\n   two lines.</p>\n<p>Two</p>", "One sentence on two lines.\n\nTwo"),
        ("<ul>\n<li>a</li>\n<li>b</ul>c", "a\nb\n\nc"),
        ("a<br>b<br><br>c", "a\nb\n\nc"),
        ("<table><tr><td>1<td>2<tr><td>3<td>4</table>", "1\t2\n3\t4"),
        ("<b>bold</b> <i>and</i>&nbsp;<u>not</u>", "bold and\xa0not"),
        ("<div>a</div>\n\n<div>b</div>", "a\nb"),
        ("<nav>1<nav>2</nav>3</nav>a", "a"),
        ("<pre><code>x  <code>y</code>  z</code>  0</pre>", "x  y  z  0"),
        ("<p>a < b</p><p>1 < 2", "a < b\n\n1 < 2"),
        ("<p>a<!-- not closed <p>b</p>", "a"),
        ("<p>a</p><a href=", "a"),
    ],
)
def test_html_has_the_white_space_that_a_browser_shows(page: str, text: str) -> None:
    assert html_text(page) == text


def test_a_post_keeps_the_indentation_of_its_program(tmp_path: Path) -> None:
    body = "<p>Do:</p><pre><code>if a:\n    b()\n</code></pre>"
    escaped = body.replace("<", "&lt;").replace("\n", "&#10;")
    posts = "".join(
        f'<row Id="{n}" PostTypeId="2" Body="{escaped}&lt;p&gt;{n}&lt;/p&gt;" />' for n in range(9)
    )
    (tmp_path / "Posts.xml").write_text(f"<posts>{posts}</posts>")
    found = texts(prepared(tmp_path / "out", Source("s", f"file://{tmp_path}/Posts.xml", "s")))
    assert found <= {f"Do:\n\nif a:\n    b()\n\n{n}" for n in range(9)} and found


PROGRAM = "class A:\n    a = [1,  2]\n\n\n    def f(self):\n\t\treturn {{a}}"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        (f"Try\n\n<pre>\n{PROGRAM}\n</pre>\n\n\n\nnow", f"Try\n\n{PROGRAM}\n\nnow"),
        (f'<syntaxhighlight lang="python">\n{PROGRAM}\n</syntaxhighlight>', PROGRAM),
        (f"<source lang=c>\n  {PROGRAM}</source>", f"  {PROGRAM}"),
        ("a <code>x  =  ''1''</code>, {{b}}c", "a x  =  1, c"),
        ("<div><code>a  <code>b</code></code></div><ref><code>c</code></ref>", "a  b"),
        ("<pre>1 &lt;  2</pre> &#65535;0&#65535;", "1 <  2 \uffff0\uffff"),
        ("<code></code><pre/>a", "a"),
        ("a<ref/> [[File:b.jpg|[[c]] <code>d</code>]]\n{|\n|e\n|}", "a "),
    ],
)
def test_an_article_keeps_the_white_space_of_programs(markup: str, text: str) -> None:
    assert wiki_text(markup) == text


def test_a_page_cannot_repeat_a_program() -> None:
    markup = f"<pre>{'x' * 4000}</pre>" + "&#65535;0&#65535; " * 200
    assert len(wiki_text(markup)) < len(markup)


def test_prepared_data_say_their_format_and_cleaning(tmp_path: Path) -> None:
    """`tests/trainer/checkpoint/test_older_release.py` has those of the format before."""
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"word{n} " * 9}) for n in range(9)))
    folder = prepared(tmp_path / "out", Source("s", f"file://{path}", "s"))
    assert prepared_with(read_manifest(folder)) == "format 3; s: cleaning none"
