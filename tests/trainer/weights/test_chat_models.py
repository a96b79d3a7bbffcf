"""A chat model keeps its template, special tokens and stop tokens, from import to export."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from llmtrain_core.api.model import RopeScaling
from llmtrain_trainer.config import ChatConfig, DataConfig, Source
from llmtrain_trainer.data.prepare import PreparedData, prepare
from llmtrain_trainer.data.tokenizer import open_tokenizer, train_bpe
from tests.support.command_line import llmtrain
from tests.support.trainer.chat_models import (
    SETTINGS,
    SHAPE,
    SPECIAL,
    TEMPLATE,
    special_id,
    write_chat_model,
)

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    write_chat_model(folder, rows=[special_id("<|end|>"), special_id("<|finish|>")])
    return folder


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model after import and export."""
    root = tmp_path_factory.mktemp("exported")
    llmtrain("import", model, "--to", root / "base")
    llmtrain("export", root / "base", "--to", root / "model")
    return root / "model"


def test_an_imported_model_is_exported_with_all_that_belongs_to_it(exported: Path) -> None:
    """It had no chat template, its BOS was its end token, and it never stopped."""
    from transformers import AutoTokenizer, GenerationConfig

    loaded = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (
        "<|begin|>",
        "<|finish|>",
        "<|finish|>",
    )
    talk = [{"role": "user", "content": "say hi"}]
    assert (
        loaded.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        == "<|begin|><|user|>say hi<|end|><|assistant|>"
    )
    generation = GenerationConfig.from_pretrained(exported, local_files_only=True)
    assert set(generation.eos_token_id) == {0, special_id("<|finish|>"), special_id("<|end|>")}
    assert (generation.temperature, generation.top_p) == (0.5, 0.9)
    config = json.loads((exported / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (
        special_id("<|begin|>"),
        special_id("<|finish|>"),
    )
    assert loaded.model_max_length == SHAPE.sequence_length


def test_a_chat_stops_by_itself_and_is_the_one_of_transformers(exported: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(exported, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    stopped = 0
    for text in ("say hi", "be brief", "there", "and <|end|> hi"):
        messages = [{"role": "system", "content": "be"}, {"role": "user", "content": text}]
        found = json.loads(
            llmtrain(
                "sample",
                exported,
                "--chat",
                "--system=be",
                f"--prompt={text}",
                "--tokens=24",
                "--temperature=0",
                "-o",
                "json",
            )
        )["text"]
        if "<|" in text:
            assert isinstance(found, str)  # theirs reads it as a special token
            continue
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        with torch.no_grad():
            out = theirs.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.size(1) :]
        assert found == tokenizer.decode(out, skip_special_tokens=True)
        stopped += len(out) < 24
    assert stopped


def test_a_checkpoint_without_a_template_samples_and_says_what_a_chat_needs(
    model: Path, tmp_path: Path
) -> None:
    """Checkpoints of older releases have a tokenizer alone."""
    from llmtrain_trainer.errors import InputError
    from llmtrain_trainer.weights.sample import SamplingOptions, chat, load_model, sample

    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    for name in SETTINGS:
        (folder / name).unlink()
    decoder, loaded = load_model(folder)
    assert isinstance(sample(decoder, loaded, "say", 4, SamplingOptions(0)), str)
    with pytest.raises(InputError, match="no chat template beside it") as caught:
        chat(decoder, loaded, [("user", "hi")], 4, SamplingOptions(0))
    assert "chat_template.jinja" in str(caught.value.remedy)


KINDS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "scaled": {"rope_scaling": RopeScaling(factor=8.0, original_sequence_length=100)},
    "learned": {
        "positions": "learned",
        "norm": "layer",
        "activation": "gelu",
        "biases": "all",
        "kv_heads": None,
    },
    "experts": {"experts": 4, "experts_per_token": 2, "qk_norm": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kept_keys_and_values_give_the_tokens_of_whole_passes(kind: str) -> None:
    """Also beyond the length of the model's sequences, and for a second prompt."""
    import torch

    from llmtrain_trainer.model.decoder import Decoder
    from llmtrain_trainer.weights.sample import SamplingOptions, generate

    torch.manual_seed(4)
    kept = Decoder(SHAPE.model_copy(update={"sequence_length": 24, **KINDS[kind]}))
    with torch.no_grad():
        for parameter in kept.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3)
    fresh = copy.deepcopy(kept)
    for length in (18, 5):
        prompt = torch.randint(0, 300, (length,), generator=torch.manual_seed(length)).tolist()
        seen = list(prompt)
        with torch.no_grad():
            for _ in range(12):
                seen.append(int(fresh(torch.tensor([seen[-24:]]))[0, -1].argmax()))
        assert list(generate(kept, prompt, 12, SamplingOptions(0))) == seen[length:]


def _prepared(tmp_path: Path, tokenizer: Path, **chat: Any) -> PreparedData:
    lines = [{"prompt": f"say {number}", "response": f"hi {number}"} for number in range(12)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, lines)))
    source = Source("pairs", pairs.as_uri(), "spec.data.sources[0].uri", format="chat")
    config = DataConfig(
        (source,), 0.25, 320, 3, tokenizer=tokenizer.as_uri(), chat=ChatConfig(64, **chat)
    )
    said: list[str] = []
    data = prepare(config, 64, tmp_path / "work", write_line=said.append)
    assert f"data: the chat template is that of {data.template}" in said
    return data


@pytest.mark.parametrize("preset", [None, "chatml"])
def test_fine_tuning_uses_the_template_of_the_model_unless_the_job_names_one(
    preset: str | None, model: Path, tmp_path: Path
) -> None:
    """The checkpoints of the job get the files that are beside the tokenizer of its data."""
    from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata, create_step_folder

    data = _prepared(tmp_path, model / "tokenizer.json", preset=preset)
    manifest = json.loads((data.folder / "manifest.json").read_text())
    assert data.template == manifest["chatTemplate"]
    metadata = CheckpointMetadata(1, "2.15.0", "dp1", {}, data.digest, 8, None)
    step = create_step_folder(tmp_path / "run", metadata, data.folder / "tokenizer.json")
    template = (step / "chat_template.jinja").read_text()
    config = json.loads((step / "tokenizer_config.json").read_text())
    stops = json.loads((step / "generation_config.json").read_text())
    assert (config["bos_token"], stops["temperature"]) == ("<|begin|>", 0.5)
    if preset is None:
        assert template == TEMPLATE
        assert str(model) in manifest["chatTemplate"]
    else:
        assert "<|im_start|>" in template and "chat_template" not in config
        assert manifest["chatTemplate"] == "preset chatml"
    assert len(stops["eos_token_id"]) == 3


def test_a_template_of_the_model_adds_no_token_and_its_files_are_part_of_the_data(
    model: Path, tmp_path: Path
) -> None:
    """A text such as `<|never|>` became a token that the model had never seen."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copyfile(model / "tokenizer.json", folder / "tokenizer.json")
    config = {**SETTINGS["tokenizer_config.json"], "unk_token": "<|end|>"}
    config["chat_template"] += "{% if unk_token == 'x' %}<|never|>{% endif %}"
    digests, folders = set(), set()
    for changes in ({}, {"unk_token": "x"}, {"model_max_length": 9}):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, **changes}))
        data = _prepared(tmp_path, folder / "tokenizer.json")
        assert open_tokenizer(data.folder / "tokenizer.json").token_to_id("<|never|>") is None
        digests.add(data.digest)
        folders.add(data.folder)
    assert (len(digests), len(folders)) == (2, 3)  # the last change is none of the tokens


def test_a_tokenizer_that_was_trained_here_has_no_bos_that_its_template_did_not_write(
    tmp_path: Path,
) -> None:
    """The exported one had the end token as BOS, which is in no conversation of the training."""
    from llmtrain_trainer.data.chat_template import PRESETS
    from llmtrain_trainer.weights.exported_tokenizer import tokenizer_files

    train_bpe(["say hi"] * 9, 310, SPECIAL).save(str(tmp_path / "tokenizer.json"))
    plain = json.loads(tokenizer_files(tmp_path / "tokenizer.json", 8)["tokenizer_config.json"])
    assert plain["bos_token"] == plain["eos_token"] == "<|endoftext|>"
    (tmp_path / "chat_template.jinja").write_text(PRESETS["llama3"])
    chat = json.loads(tokenizer_files(tmp_path / "tokenizer.json", 8)["tokenizer_config.json"])
    assert "bos_token" not in chat and chat["eos_token"] == "<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "stops"),
    [
        ("{{ raise_exception('no text') }}", []),
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}", ["<|user|>"]),
        ("{% for m in messages[-2:] %}{{ m.content }}<|end|>{% endfor %}", ["<|end|>"]),
        (
            "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
            "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}",
            ["<|end|>"],
        ),
    ],
)
def test_the_stop_tokens_are_those_that_end_a_turn(
    template: str, stops: list[str], tmp_path: Path
) -> None:
    """A template for other messages ended the export of any model."""
    from llmtrain_trainer.weights.exported_tokenizer import tokenizer_files

    train_bpe(["say hi"] * 9, 310, SPECIAL).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(template)
    files = tokenizer_files(tmp_path / "tokenizer.json", 8)
    found = json.loads(files["generation_config.json"])["eos_token_id"]
    assert found == [0, *map(special_id, stops)]


def test_named_templates_are_kept_if_none_is_the_default(tmp_path: Path) -> None:
    from llmtrain_trainer.weights.exported_tokenizer import tokenizer_files

    train_bpe(["say hi"] * 9, 310, SPECIAL).save(str(tmp_path / "tokenizer.json"))
    named = [{"name": "tool_use", "template": TEMPLATE}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    files = tokenizer_files(tmp_path / "tokenizer.json", 8)
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == named
    assert "chat_template.jinja" not in files


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_settings_that_no_file_can_hold_are_refused(name: str, tmp_path: Path) -> None:
    from llmtrain_trainer.data.tokenizer_settings import read_settings
    from llmtrain_trainer.errors import InputError

    (tmp_path / name).write_text(r'{"bos_token": "\ud800"}')
    with pytest.raises(InputError, match=name):
        read_settings(tmp_path / "tokenizer.json")


def _prepare_texts(tokenizer: Path, folder: Path) -> PreparedData:
    """Write four documents below `folder`, and prepare them with this tokenizer."""
    texts = folder / "text"
    texts.mkdir()
    for number in range(4):
        (texts / f"{number}.txt").write_text(f"say hi {number}, and be brief " * 9)
    source = Source("text", texts.as_uri(), "field")
    config = DataConfig((source,), 0.25, 320, 3, tokenizer=tokenizer.as_uri())
    return prepare(config, 4, folder / "work")


def test_documents_are_whole_if_the_tokenizer_truncates(model: Path, tmp_path: Path) -> None:
    """Programs save their truncation in tokenizer.json: the rest of each document was dropped."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=500)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    data = _prepare_texts(tmp_path / "tokenizer.json", tmp_path)
    assert data.train_tokens > 3 * 50


@pytest.mark.parametrize(
    ("adds", "processed", "first"),
    [
        (True, False, ["<|begin|>"]),
        (None, True, ["<|begin|>"]),
        (False, True, []),
        (None, False, []),
    ],
)
def test_documents_begin_with_bos_where_the_tokenizer_says_so(
    adds: bool | None, processed: bool, first: list[str], model: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    from llmtrain_trainer.data.shards import TokenStream

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    if processed:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", special_id("<|begin|>"))]
        )
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|begin|>", "add_bos_token": adds}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    data = _prepare_texts(folder / "tokenizer.json", tmp_path)
    stream = TokenStream(data.folder / "text", "train", 320)
    tokens = stream.read(0, len(stream)).tolist()
    starts = [0, *(place + 1 for place, token in enumerate(tokens[:-1]) if token == 0)]
    assert len(starts) == 3
    begin = special_id("<|begin|>")
    assert [tokens[start] == begin for start in starts] == [bool(first)] * 3
    assert tokens.count(begin) == len(starts) * len(first)
