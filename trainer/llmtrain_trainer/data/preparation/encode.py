"""Third stage, per unit: encode the kept documents as tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmtrain_trainer.data.chat_template import FIELD as CHAT_FIELD
from llmtrain_trainer.data.documents import Causes
from llmtrain_trainer.data.examples import OVERLONG_FIELD, ExampleEncoder
from llmtrain_trainer.data.preparation import dedup_split, extract
from llmtrain_trainer.data.preparation.manifest_plan import Unit
from llmtrain_trainer.data.preparation.workspace import Workspace, read_json
from llmtrain_trainer.data.tokenizer import (
    FIELD,
    Encoder,
    cpu_limit,
    end_token,
    is_panic,
    open_tokenizer,
)
from llmtrain_trainer.errors import InputError

STAGE = "tokens"

PARTS = {"train": dedup_split.TRAIN, "held-out": dedup_split.HELD_OUT}
"""Name of a part -> outcome of its documents."""


_KINDS = {OVERLONG_FIELD: "overlong", CHAT_FIELD: "template"}
"""Field of an error -> kind of an example that cannot be encoded."""
_ALL_FAIL = 100
"""After so many failures and no success, the preparation ends early if they are too many anyway."""


class UnusableExamples:
    """Examples that do not fit a sequence, or that their template refuses."""

    def __init__(self, allowed: Callable[[], float] = lambda: 0) -> None:
        """`allowed` returns the number of examples that a source may leave out."""
        self._allowed = cache(allowed)
        self.parts: Counter[str] = Counter()
        self.causes = Causes()
        self.remedies: dict[str, tuple[str, str]] = {}
        self.truncated = 0
        self.used = 0

    def add(self, part: str, error: InputError) -> None:
        """Count an example. Raise the error again if it is of another kind, or the only outcome."""
        kind, failed = _KINDS.get(error.field or ""), self.parts.total()
        if kind is None:
            raise error
        if not self.used and failed >= _ALL_FAIL and failed >= self._allowed():
            raise error
        self.parts[part] += 1
        self.causes.add(kind, error.message)
        self.remedies[kind] = (error.field or "", error.remedy or "")

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {
            "parts": dict(self.parts),
            "causes": self.causes.to_json(),
            "remedies": self.remedies,
            "truncated": self.truncated,
        }

    def add_json(self, other: dict[str, Any]) -> None:
        """Add the counts of another unit."""
        self.parts.update(other["parts"])
        self.causes.add_json(other["causes"])
        self.remedies.update(other["remedies"])
        self.truncated += other["truncated"]


def load_encoder(work: Workspace) -> Encoder | ExampleEncoder:
    """Return the encoder of the tokenizer that `select_documents` wrote."""
    tokenizer = open_tokenizer(work.tokenizer)
    chat, template = work.plan.config.chat, work.plan.template
    end = end_token(tokenizer, work.plan.settings.eos)
    if chat is None or template is None:
        return Encoder(tokenizer, first=work.plan.first_tokens, end=end)
    examples = ExampleEncoder(tokenizer, template, chat.max_length, end)
    examples.truncates = chat.overlong == "truncate"
    return examples


def encode_unit(work: Workspace, unit: Unit, encoder: Encoder | ExampleEncoder) -> None:
    """Write the tokens of a unit, one file per part, and their counts."""
    dtype = work.plan.token_type
    texts = work.file(extract.STAGE, unit.number, ".jsonl")
    outcomes = np.load(work.file(dedup_split.STAGE, unit.number, ".npy"))
    counts: dict[str, int] = {}
    unusable = UnusableExamples(lambda: _allowed(work, unit.source))
    for part, wanted in PARTS.items():
        path = work.file(STAGE, unit.number, f".{part}.bin")
        with work.draft(path) as draft, draft.open("wb") as file:
            documents = extract.clean_documents(texts)
            for (name, text), outcome in zip(documents, outcomes, strict=True):
                if outcome == wanted:
                    try:
                        ids = _ids(encoder, name, text, work.plan.tokenizer)
                    except InputError as error:
                        unusable.add(part, error)
                        continue
                    unusable.used += 1
                    file.write(ids.astype(dtype).tobytes())
            counts[part] = file.tell() // dtype.itemsize
    if isinstance(encoder, ExampleEncoder):
        unusable.truncated, encoder.truncated = encoder.truncated, 0
    facts = {"tokens": counts, "unusable": unusable.to_json()}
    work.write_json(work.file(STAGE, unit.number, ".json"), facts)


def _allowed(work: Workspace, source: int) -> float:
    units = (unit for unit in work.plan.units if unit.source == source)
    facts = (read_json(work.file(extract.STAGE, unit.number, ".json")) for unit in units)
    read: int = sum(each["counts"].get("read", 0) for each in facts)
    return work.plan.sources[source].max_unusable_rows * read


def _ids(
    encoder: Encoder | ExampleEncoder, name: str, text: str, tokenizer: Path | None
) -> npt.NDArray[np.uint32]:
    """Encode a document. `tokenizer` is the file of a tokenizer that was not trained here."""
    with nullcontext() if tokenizer is None else cpu_limit(len(text)):
        try:
            if isinstance(encoder, ExampleEncoder):
                return encoder.encode(name, text)
            return encoder.encode(text)
        except BaseException as error:
            if not is_panic(error):
                raise
            raise InputError(
                "InvalidSpec",
                f"{tokenizer}: encoding {name} fails: {str(error)[:300]}",
                field=FIELD,
                remedy="use a tokenizer from a source that you trust",
            ) from error
