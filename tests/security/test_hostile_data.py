"""Tokenizers, templates, prepared data and corpora of strangers: an error that names the file."""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.config import ChatConfig, DataConfig, Source
from llmtrain_trainer.data import prepared, tokenizer
from llmtrain_trainer.data.chat_template import ChatTemplate, template_of
from llmtrain_trainer.data.preparation import run_local
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.sources import locate
from llmtrain_trainer.data.preparation.workspace import MANIFEST, Workspace
from llmtrain_trainer.data.prepare import prepare
from llmtrain_trainer.data.templates import renderer as template_renderer
from llmtrain_trainer.data.tokenizer_settings import read_settings
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.weights.limited_tokenizer import encode_limited
from tests.support.trainer.checkpoints import RunsCommand
from tests.support.trainer.jobs import job_spec
from tests.support.trainer.launchers import Pods
from tests.support.trainer.processes import end_by_limit

pytestmark = pytest.mark.torch

TALK = [("user", "say hi"), ("assistant", "hi there")]
DEEP, LONG = "[" * 100_000, "9" * 5_000

SLOW_WORDS = ("a" * 21 + "! ") * 20_000
"""Each word takes some milliseconds with the pattern below, so all of them take minutes."""


def slow_tokenizer(path: Path, pattern: str = r"(a+)+$") -> Path:
    """Write a tokenizer whose regular expression is slow, or invalid, or fails."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"[UNK]": 0, "<|endoftext|>": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("x"), "isolated")
    wire = json.loads(made.to_str())
    wire["pre_tokenizer"]["pattern"]["Regex"] = pattern
    path.write_text(json.dumps(wire))
    return path


def config(uri: str, **changes: Any) -> DataConfig:
    source = Source("text", uri, "spec.data.sources[0].uri")
    values: dict[str, Any] = {
        "sources": (source,),
        "held_out_fraction": 0.2,
        "vocab_size": 300,
        "seed": 0,
        "tokenizer": None,
        **changes,
    }
    return DataConfig(**values)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "end"),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(99) %}"
            "{% set n.x = n.x ~ n.x %}{% endfor %}",
            "memory",
        ),
        ("{{ 'x' * 9999999999 }}", "memory"),
        ("{{ 'x' * 9999999 }}", "more than"),
        ("{{ messages[0].content.__class__.__mro__ }}{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ '\ue0007\ue001' }}", "mark of its own"),
        (r"{{ '\ud800' }}", "surrogates"),
        (r"{{ raise_exception('\ud800') }}", "the template fails: ?"),
        ("{{" + "(" * 5_000 + ")" * 5_000 + "}}", "cannot be read"),
    ],
    ids=[
        "endless",
        "doubling",
        "huge",
        "long",
        "escape",
        "mark",
        "half",
        "half of an error",
        "deep",
    ],
)
def test_a_template_has_little_time_and_memory_and_the_error_names_its_file(
    source: str, problem: str, tmp_path: Path
) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    template = template_of(read_settings(tmp_path / "tokenizer.json"))
    assert template is not None
    with pytest.raises(InputError) as caught:
        list(template.segments(TALK, "<end>"))
    assert str(tmp_path / "chat_template.jinja") in caught.value.message
    assert problem in caught.value.message, caught.value.message


def test_a_message_that_ends_the_process_of_a_template_does_not_end_others() -> None:
    """All texts after it were refused too."""
    renderer = template_renderer.TemplateRenderer("{{ messages[0].content }}")
    hello = {"messages": [{"content": "hi"}]}
    for _ in range(template_renderer.MAX_STARTS):
        assert renderer.render(hello) == "hi"
        renderer._child.kill()
        renderer._child.wait()
    with pytest.raises(template_renderer.TemplateFailureError, match="its process ended with -9"):
        renderer.render(hello)  # it happened too often


def test_the_process_of_a_template_ends_with_its_last_use() -> None:
    """Each template that was not in use any more left a process behind."""
    renderer = template_renderer.TemplateRenderer("{{ messages[0].content }}")
    child = renderer._child
    copy = os.fork()
    if copy == 0:  # the end of a copy is not that of the renderer
        renderer.__del__()
        os._exit(0)
    os.waitpid(copy, 0)
    assert renderer.render({"messages": [{"content": "hi"}]}) == "hi"
    del renderer
    assert child.returncode == -9


def test_the_random_parts_of_a_template_are_those_of_every_process() -> None:
    source = "{{ range(9999) | random }} {{ lipsum() }}"
    texts = []
    for _ in range(2):
        renderer = template_renderer.TemplateRenderer(source)
        texts += [renderer.render({"messages": []}) for _ in range(2)]
        renderer.close()
    assert len(set(texts)) == 1


def test_a_template_that_ends_is_rendered_after_one_that_does_not() -> None:
    with pytest.raises(InputError):
        list(ChatTemplate("{{ 'x' * 9999999999 }}").segments(TALK, "<end>"))
    good = ChatTemplate("{% for m in messages %}{{ m['content'] }}|{% endfor %}")
    assert [part.text for part in good.segments(TALK, "<end>")] == ["say hi", "|", "hi there", "|"]


@pytest.mark.parametrize("content", [DEEP, LONG, "[]", '{"chat_template": [5]}'])
def test_a_hostile_configuration_of_a_tokenizer_is_refused_or_ignored(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    try:
        assert template_of(read_settings(tmp_path / "tokenizer.json")) is None
    except InputError as error:
        assert "tokenizer_config.json" in error.message


def test_an_endless_regular_expression_ends_a_child_and_names_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "CPU_SECONDS", 0.5)
    monkeypatch.setattr(tokenizer, "CHARACTERS_PER_SECOND", 1e9)
    path = slow_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="may never end") as caught:
        encode_limited(tokenizer.open_tokenizer(path), SLOW_WORDS, str(path))
    assert str(path) in caught.value.message


def test_a_regular_expression_that_fails_names_the_tokenizer(tmp_path: Path) -> None:
    """The library panics: no `except Exception` would catch it."""
    path = slow_tokenizer(tmp_path / "tokenizer.json")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(4):
        (corpus / f"{number}.txt").write_text(f"{number} " + "a" * 60 + "!")
    with pytest.raises(InputError, match="retry-limit") as caught:
        prepare(config(f"file://{corpus}", tokenizer=f"file://{path}"), 4, tmp_path / "work")
    assert str(path) in caught.value.message
    with pytest.raises(InputError, match="retry-limit"):
        encode_limited(tokenizer.open_tokenizer(path), "a" * 60 + "!", str(path))


def test_the_data_step_of_a_pod_reports_an_endless_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(tokenizer, "CPU_SECONDS", 0.5)
    monkeypatch.setattr(tokenizer, "CHARACTERS_PER_SECOND", 1e9)
    path = slow_tokenizer(tmp_path / "tokenizer.json")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(4):
        (corpus / f"{number}.txt").write_text(f"{number} {SLOW_WORDS}")
    spec = job_spec(uri=f"file://{corpus}")
    spec["data"]["tokenizer"] = {"uri": f"file://{path}"}
    pods = Pods(tmp_path, spec)
    try:
        process = pods.fork(0)
        process.join(120)
        error = pods.message(0)["error"]
    finally:
        pods.stop()
    assert (error["reason"], error["field"]) == ("InvalidSpec", "spec.data.tokenizer.uri")
    assert str(path) in error["message"] and "may never end" in error["message"]


def test_llmtrain_data_reports_an_endless_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The children of `llmtrain data prepare`: one is ended as `cpu_limit` ends it."""
    path = slow_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_text("text")
    data = config(f"file://{tmp_path}/a.txt", tokenizer=f"file://{path}")
    monkeypatch.setattr(run_local, "_enter", end_by_limit)
    with pytest.raises(InputError, match="may never end") as caught:
        run_local.run_processes(Workspace(plan_preparation(data), tmp_path / "out"), 1)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("content", [DEEP, LONG, "[]", "{}", '{"model": {"type": "BPE"}}', "\0"])
def test_what_is_no_tokenizer_is_refused_with_its_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(InputError, match="is not a tokenizer") as caught:
        tokenizer.load_tokenizer(path, 300)
    assert str(path) in caught.value.message


def test_a_device_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="not a file"):
        tokenizer.open_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "..", "a/../../..", "%2e%2e/json", "/../json", "x%00y"]
)
def test_a_package_gives_nothing_outside_its_folder(path: str) -> None:
    source = Source("text", f"package://email/{path}", "spec.data.sources[0].uri")
    with pytest.raises(InputError) as caught:
        locate(source)
    assert caught.value.field == "spec.data.sources[0].uri"
    assert locate(Source("text", "package://email/mime/../mime", "x")).name == "mime"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Prepared data of a few documents."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(20):
        words = (f"word{(number * 31 + i * i) % 97} and" for i in range(60))
        (corpus / f"{number:02d}.txt").write_text(" ".join(words))
    return prepare(config(f"file://{corpus}"), 8, tmp_path / "work").folder


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / MANIFEST
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return edit


def _write(content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / MANIFEST).write_text(content)


def _link_shards_away(folder: Path) -> None:
    (folder / "away").symlink_to("/etc")
    _edit(lambda m: m["sources"][0]["shards"][0].update(file="away/passwd"))(folder)


MANIFESTS: dict[str, Callable[[Path], Any]] = {
    "tokenizer above": _edit(lambda m: m["tokenizer"].update(file="../..")),
    "tokenizer elsewhere": _edit(lambda m: m["tokenizer"].update(file="/etc/passwd")),
    "tokenizer is a list": _edit(lambda m: m["tokenizer"].update(file=["a"])),
    "shard above": _edit(lambda m: m["sources"][0]["shards"][0].update(file="../../x.bin")),
    "shard behind a link": _link_shards_away,
    "source above": _edit(lambda m: m["sources"][0].update(name="../../..")),
    "negative tokens": _edit(lambda m: m["sources"][0]["shards"][0].update(tokens=-5)),
    "wide tokens": _edit(lambda m: m.update(bytesPerToken=1 << 40)),
    "sources is text": _edit(lambda m: m.update(sources="many")),
    "counts are text": _edit(lambda m: m["sources"][0].update(skipped="many")),
    "a count is text": _edit(lambda m: m["sources"][0]["documents"].update(dropped={"a": "b"})),
    "causes are missing": _edit(lambda m: m["sources"][0].update(dropped={"json": {"count": 1}})),
    "a group is empty": _edit(
        lambda m: m["sources"][0].update(
            nearDuplicates={
                "largest": [{"removed": 1, "kept": {"name": "a", "text": "b"}, "first": []}]
            }
        )
    ),
    "no tokenizer": _edit(lambda m: m.pop("tokenizer")),
    "deep": _write('{"kind": ' + DEEP),
    "long number": _write('{"kind": ' + LONG + "}"),
    "list": _write("[]"),
    "nothing": _write(""),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_hostile_manifest_is_refused_and_named(name: str, folder: Path) -> None:
    MANIFESTS[name](folder)
    for read in (
        lambda: prepared.load(folder, 300, 8, "spec.data"),
        lambda: prepared.verify(folder),
        lambda: prepared.tokenizer_of(folder),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert caught.value.reason == "CorpusCorrupt"
        assert MANIFEST in caught.value.message
        assert len(caught.value.message) < 1000


@pytest.mark.parametrize("content", [DEEP, LONG, "[]", '{"tokens": "2", "width": 2, "crc32": 5}'])
def test_hostile_checksums_of_a_shard_are_refused(content: str, folder: Path) -> None:
    from llmtrain_trainer.data.shards import TokenStream

    (beside,) = (folder / "text").glob("train-*.json")
    beside.write_text(content)
    with pytest.raises(InputError, match="checksums cannot be read"):
        TokenStream(folder / "text", "train", 300)


def test_a_parquet_file_with_a_pickle_runs_no_command(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    from llmtrain_trainer.data.preparation.sources import list_files
    from llmtrain_trainer.data.readers import read

    ran = tmp_path / "ran"
    facts = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(RunsCommand(ran)),
    }
    column = pyarrow.field("text", pyarrow.string(), metadata=facts)
    table = pyarrow.table([["some text"]], schema=pyarrow.schema([column]))
    parquet.write_table(table, tmp_path / "a.parquet")
    (file,) = list_files(Source("text", f"file://{tmp_path}/a.parquet", "spec.data"))
    assert [document.text for document in read(file)] == ["some text"]
    assert not ran.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": ' + DEEP + "\n"),
        ("a.jsonl", '{"text": ' + LONG + "}\n"),
        ("chat.jsonl", '{"messages": ' + DEEP + "\n"),
        ("a.xml", '<mediawiki><!DOCTYPE x [<!ENTITY a "b">]>&a;'),
    ],
)
def test_a_hostile_corpus_is_refused_with_its_file(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    chat = ChatConfig(64, "plain") if name.startswith("chat") else None
    with pytest.raises(InputError) as caught:
        prepare(config(f"file://{path}", chat=chat), 8, tmp_path / "work")
    assert str(path) in caught.value.message


def test_the_signal_of_the_limit_is_one_that_nothing_else_uses() -> None:
    assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL
    assert template_renderer.CPU_SECONDS < 60
