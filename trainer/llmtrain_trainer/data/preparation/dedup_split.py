"""Second stage, in one process: remove duplicates, hold out documents, train the tokenizer.

It needs 136 bytes of memory per document and the tokenizer's sample, but never the whole corpus.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llmtrain_trainer.data.conversations import contents
from llmtrain_trainer.data.documents import ReadReport
from llmtrain_trainer.data.preparation import extract
from llmtrain_trainer.data.preparation.limits import require_usable
from llmtrain_trainer.data.preparation.minhash import clusters
from llmtrain_trainer.data.preparation.near_groups import near_groups, near_groups_path
from llmtrain_trainer.data.preparation.workspace import Workspace, read_json
from llmtrain_trainer.data.tokenizer import (
    add_special,
    load_tokenizer,
    sample_indices,
    sample_limit,
    train_bpe,
)
from llmtrain_trainer.errors import InputError

STAGE = "fate"

TRAIN, HELD_OUT, EXACT, NEAR = range(4)
"""What happens to a document."""
OUTCOMES = ("train", "heldOut", "exactDuplicate", "nearDuplicate")

Outcomes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


def select_documents(work: Workspace) -> None:
    """Write the outcomes of every unit, then the tokenizer."""
    units = work.plan.units
    parts = [np.load(work.file(extract.STAGE, unit.number, ".npy")) for unit in units]
    sizes = [len(part) for part in parts]
    facts = np.concatenate(parts)
    sources = np.repeat([unit.source for unit in units], sizes)
    _require_usable_rows(work)
    outcomes, kept = decide_outcomes(facts, sources, work.plan.config.held_out_fraction)
    if not (outcomes == HELD_OUT).any():
        raise _nothing_held_out(work, tally([outcomes]))
    for unit, part in zip(units, np.split(outcomes, np.cumsum(sizes)[:-1]), strict=True):
        path = work.file(STAGE, unit.number, ".npy")
        if not path.exists():  # an interrupted process wrote the same
            with work.draft(path) as draft, draft.open("wb") as file:
                np.save(file, part)
    if not near_groups_path(work).exists():
        work.write_json(near_groups_path(work), near_groups(work, kept, sources, sizes))
    size, template = work.plan.config.vocab_size, work.plan.template
    special = template.special_tokens() if template and not template.of_model else []
    with work.draft(work.tokenizer) as draft:
        if work.plan.tokenizer is not None:
            tokenizer = load_tokenizer(work.plan.tokenizer, size, work.plan.settings.eos)
            if add_special(tokenizer, special, size):
                tokenizer.save(str(draft))
            else:
                shutil.copyfile(work.plan.tokenizer, draft)
        else:
            texts = _sample(work, outcomes, facts["length"])
            train_bpe(texts, size, special).save(str(draft))


def _require_usable_rows(work: Workspace) -> None:
    """Raise InputError for a source of which too many rows cannot be used."""
    for index, source in enumerate(work.plan.sources):
        report, read = ReadReport(), 0
        for unit in work.plan.units:
            if unit.source == index:
                facts = read_json(work.file(extract.STAGE, unit.number, ".json"))
                report.add_json(facts["report"])
                read += facts["counts"].get("read", 0)
        require_usable(source, report.dropped, read)


def _nothing_held_out(work: Workspace, outcomes: dict[str, int]) -> InputError:
    counts: Counter[str] = Counter()
    for unit in work.plan.units:
        counts.update(read_json(work.file(extract.STAGE, unit.number, ".json"))["counts"])
    read = counts.pop("read", 0)
    counts.update({name: outcomes[name] for name in OUTCOMES[EXACT:] if outcomes[name]})
    dropped = ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) or "nothing"
    return InputError(
        "CorpusTooSmall",
        f"of {read} documents {outcomes['train']} are left, so none can be held out"
        f" (dropped: {dropped})",
        field=work.plan.sources[0].field,
        remedy="add text, choose what ends a document (data.sources[].documents), or keep near"
        " duplicates (nearDuplicates: keep)",
    )


def decide_outcomes(
    facts: npt.NDArray[np.void], sources: npt.NDArray[np.int64], fraction: float
) -> tuple[Outcomes, Indices]:
    """Return the outcome of every document, and which one is kept of its near duplicates.

    The second is -1 for other documents than near duplicates. Of equal texts the first is kept.

    Duplicates are removed before documents are held out, so no held-out document has a near
    duplicate in the training part.
    """
    outcomes = np.full(len(facts), EXACT, np.uint8)
    first = _first_of_equal(facts)
    cluster = clusters(facts["bands"][first])
    # by cluster, then by the second half of the key: the first of each cluster is kept
    order = np.lexsort((facts["choice"][first], cluster))
    stays = np.ones(len(order), bool)
    stays[1:] = cluster[order][1:] != cluster[order][:-1]
    outcomes[first] = NEAR
    kept = first[order[stays]]
    instead = np.full(len(facts), -1, np.int64)
    instead[first[order]] = kept[np.cumsum(stays) - 1]
    instead[kept] = -1
    outcomes[kept] = TRAIN
    for source in np.unique(sources[kept]):
        mine = kept[sources[kept] == source]
        mine = mine[np.argsort(facts["held_out"][mine], kind="stable")]
        count = min(max(1, round(len(mine) * fraction)), len(mine) - 1)
        if count:  # conversations with the same prompt stay together
            keys = facts["held_out"][mine]
            outcomes[mine[keys <= keys[count - 1]]] = HELD_OUT
    return outcomes, instead


def _first_of_equal(facts: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Return the first index of every distinct content key, in the order of the keys."""
    order = np.lexsort((facts["choice"], facts["held_out"]))
    new = np.ones(len(order), bool)
    ordered = facts[["held_out", "choice"]][order]
    new[1:] = (ordered["held_out"][1:] != ordered["held_out"][:-1]) | (
        ordered["choice"][1:] != ordered["choice"][:-1]
    )
    return order[new]


def _sample(work: Workspace, outcomes: Outcomes, lengths: npt.NDArray[np.int64]) -> Iterator[str]:
    learnt = np.flatnonzero(outcomes == TRAIN)
    limit = sample_limit(work.plan.config.vocab_size)
    chosen = set(learnt[list(sample_indices(lengths[learnt].tolist(), limit))].tolist())
    for number, text in enumerate(_texts(work)):
        if number in chosen:
            yield text[:limit]


def _texts(work: Workspace) -> Iterator[str]:
    said = contents if work.plan.template else str
    for unit in work.plan.units:
        path = work.file(extract.STAGE, unit.number, ".jsonl")
        yield from (said(text) for _, text in extract.clean_documents(path))


def tally(outcomes: Sequence[Outcomes]) -> dict[str, int]:
    """Return the number of documents per outcome."""
    counts = np.bincount(np.concatenate(outcomes), minlength=len(OUTCOMES))
    return dict(zip(OUTCOMES, counts.tolist(), strict=True))
