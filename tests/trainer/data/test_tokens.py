"""The tokenizer: subwords of a word it has not learnt, and all of Unicode there and back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors

from llmtrain_trainer.config import DataConfig, Source
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.prepare import prepare
from llmtrain_trainer.data.tokenizer import END_OF_TEXT, Encoder, load_tokenizer, train_bpe
from llmtrain_trainer.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(speeches: list[Path]) -> Tokenizer:
    return train_bpe((path.read_text() for path in speeches), 4096)


def test_unhappy_splits_into_subwords(tokenizer: Tokenizer) -> None:
    ids = Encoder(tokenizer).encode(" unhappy").tolist()[:-1]
    pieces = [tokenizer.decode([number]) for number in ids]
    assert "".join(pieces) == " unhappy" == tokenizer.decode(ids)
    assert 2 <= len(ids) < len(" unhappy")
    assert pieces[0] == " un" and len(Encoder(tokenizer).encode(" happy")) == 2


def _with(tokenizer: Tokenizer, **parts: Any) -> Tokenizer:
    changed = Tokenizer.from_str(tokenizer.to_str())
    for name, part in parts.items():
        setattr(changed, name, part)
    return changed


def _with_added(tokenizer: Tokenizer, added: AddedToken, *, special: bool = False) -> Tokenizer:
    changed = Tokenizer.from_str(tokenizer.to_str())
    (changed.add_special_tokens if special else changed.add_tokens)([added])
    return changed


_NEW_LINES = pre_tokenizers.Split(Regex(r"\s*\S+\s*"), "isolated")
OTHERS: dict[str, Callable[[Tokenizer], Tokenizer]] = {
    "as trained here": lambda found: found,
    "as GPT-2": lambda found: _with(
        _with_added(found, AddedToken("one two"), special=True),
        post_processor=processors.ByteLevel(trim_offsets=True),
    ),
    "tokens with control characters": lambda _: train_bpe(["!\x1f!\x1f!\x1f !\x1f "] * 30, 300),
    "each text twice": lambda found: _with(
        found, post_processor=processors.TemplateProcessing("$A $A", None, [])
    ),
    "a token of two words": lambda found: _with_added(found, AddedToken("one two")),
    "lower case": lambda found: _with(found, normalizer=normalizers.Lowercase()),
    "spaces between words removed": lambda found: _with(
        found, normalizer=normalizers.Replace("one two", "onetwo")
    ),
    "a space before each text": lambda found: _with(
        found, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)
    ),
    "nothing split": lambda found: _with(
        found, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ),
    "words with the space after them": lambda found: _with(
        found,
        pre_tokenizer=pre_tokenizers.Sequence(
            [_NEW_LINES, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        ),
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_documents_are_encoded_as_the_library_encodes_them(
    tokenizer: Tokenizer, speeches: list[Path], kind: str
) -> None:
    """Pieces are encoded once only where no token can reach over their ends."""
    other = OTHERS[kind](tokenizer)
    encoder = Encoder(other, end=0)
    controls = "a!\x1fb" + "".join(f"!{chr(code)}! {chr(code)} " for code in range(32))
    odd = "one two one two  ONE\n\ntwo\tone two "
    for text in (odd, controls, speeches[0].read_text()[:5000], ""):
        expected = other.encode(text, add_special_tokens=False).ids
        assert encoder.encode(text).tolist() == [*expected, 0]


@pytest.mark.parametrize(
    "control",
    [
        AddedToken("</s>"),
        AddedToken("</s>", rstrip=True, normalized=False),
        AddedToken("<sep>", lstrip=True, normalized=False),
    ],
)
def test_a_control_token_that_its_file_does_not_call_special_is_text_in_a_text(
    tokenizer: Tokenizer, control: AddedToken
) -> None:
    changed = _with_added(tokenizer, control)
    encoder, number = Encoder(changed), changed.token_to_id(str(control.content))
    text = f"one {control.content}\n\ttwo{control.content}three  "
    ids = encoder.encode(text).tolist()
    assert number not in ids
    assert changed.decode(ids[:-1]) == text


@pytest.mark.parametrize("name", ["</s>", "<tool_call>"])
def test_data_have_another_key_only_if_their_tokens_changed(
    tokenizer: Tokenizer, tmp_path: Path, name: str
) -> None:
    """Earlier releases took `</s>` for a token in a text."""
    shapes = []
    for special in (True, False):
        path = tmp_path / f"{special}" / "tokenizer.json"
        path.parent.mkdir()
        _with_added(tokenizer, AddedToken(name), special=special).save(str(path))
        (tmp_path / "a.txt").write_text("a text")
        source = Source("s", f"file://{tmp_path / 'a.txt'}", "f")
        config = DataConfig((source,), 0.1, 5000, 0, tokenizer=f"file://{path}")
        shapes.append(json.loads(plan_preparation(config).shape))
    known, hidden = shapes
    assert ("control tokens are text" in hidden) == (name == "</s>")
    assert "control tokens are text" not in known


def test_an_ordinary_added_token_is_a_token_in_a_text(tokenizer: Tokenizer) -> None:
    changed = _with_added(tokenizer, AddedToken("<tool_call>", normalized=False))
    assert changed.token_to_id("<tool_call>") in Encoder(changed).encode("a <tool_call> b")


def test_every_unicode_scalar_value_goes_there_and_back(tokenizer: Tokenizer) -> None:
    scalars = [chr(n) for n in range(sys.maxunicode + 1) if not 0xD800 <= n < 0xE000]
    assert len(scalars) == 1_112_064
    encoder = Encoder(tokenizer, by_pieces=False)
    for start in range(0, len(scalars), 1 << 14):
        text = "".join(scalars[start : start + (1 << 14)])
        ids = encoder.encode(text).tolist()
        assert tokenizer.decode(ids[:-1], skip_special_tokens=False) == text


def test_training_is_the_same_every_time(tokenizer: Tokenizer, speeches: list[Path]) -> None:
    again = train_bpe((path.read_text() for path in speeches), 4096)
    assert again.to_str() == tokenizer.to_str()


def test_a_tokenizer_from_elsewhere(tokenizer: Tokenizer, real: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    tokenizer.save(str(path))
    source = Source("s", f"file://{real}/speeches", "spec.data.sources[0].uri")
    config = DataConfig((source,), 0.1, 5000, 0, tokenizer=f"file://{path}")
    data = prepare(config, 32, tmp_path)
    assert (data.folder / "tokenizer.json").read_bytes() == path.read_bytes()
    with pytest.raises(InputError, match="4096 tokens and the model's vocabulary 300") as caught:
        load_tokenizer(path, 300)
    assert caught.value.field == "spec.model.architecture.vocabSize"


@pytest.mark.parametrize("content", ["", "{}", json.dumps({"model": "x"})])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(InputError, match="not a tokenizer"):
        load_tokenizer(path, 300)


def test_a_tokenizer_must_be_able_to_end_documents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(tokenizer.to_str().replace(END_OF_TEXT, "<other>"))
    with pytest.raises(InputError, match="ends a document"):
        load_tokenizer(path, 5000)
