"""Last stages: pack the tokens of the units into shards, then write the manifest."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from llmtrain_trainer.data.documents import ReadReport
from llmtrain_trainer.data.model_files import with_template
from llmtrain_trainer.data.preparation import dedup_split, encode, extract, minhash
from llmtrain_trainer.data.preparation.limits import require_usable
from llmtrain_trainer.data.preparation.manifest_plan import FORMAT, PreparationPlan
from llmtrain_trainer.data.preparation.near_groups import near_groups_path
from llmtrain_trainer.data.preparation.workspace import TOKENIZER, Workspace, read_json
from llmtrain_trainer.data.shards import checksum_file, shard_name
from llmtrain_trainer.data.tokenizer import end_token, largest_token
from llmtrain_trainer.data.tokenizer_settings import settings_files

STAGE = "shards"

KIND = "llmtrain-tokens"
"""Identifies our manifests."""


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """One shard: tokens `start` .. `end` of a part of a source."""

    source: int
    part: str
    number: int
    start: int
    end: int


def shard_specs(work: Workspace) -> list[ShardSpec]:
    """Return all shards. They are known once every unit is encoded."""
    totals: Counter[tuple[int, str]] = Counter()
    for unit in work.plan.units:
        for part, count in _encoded(work, unit.number)["tokens"].items():
            totals[unit.source, part] += count
    size = work.plan.shard_tokens
    return [
        ShardSpec(source, part, number, number * size, min(total, (number + 1) * size))
        for (source, part), total in sorted(totals.items())
        for number in range(-(-total // size))
    ]


def _encoded(work: Workspace, unit: int) -> dict[str, Any]:
    facts: dict[str, Any] = read_json(work.file(encode.STAGE, unit, ".json"))
    return facts


def shard_info_path(work: Workspace, shard: ShardSpec) -> Path:
    """Return the file whose existence means that a shard is complete."""
    name = f"{work.plan.sources[shard.source].name}-{shard.part}-{shard.number:05d}.json"
    return work.scratch / STAGE / name


def pack_shard(work: Workspace, shard: ShardSpec) -> None:
    """Write one shard, its checksums and its manifest entry."""
    width = work.plan.token_type.itemsize
    path = work.shards(shard.source) / shard_name(shard.part, shard.number)
    digest = hashlib.sha256()
    with work.draft(path) as draft:
        with draft.open("wb") as file:
            for content in _contents(work, shard, width):
                file.write(content)
                digest.update(content)
        with work.draft(path.with_suffix(".json")) as beside:
            beside.write_text(checksum_file(draft, width))
    work.write_json(
        shard_info_path(work, shard),
        {
            "file": f"{path.parent.name}/{path.name}",
            "tokens": shard.end - shard.start,
            "sha256": digest.hexdigest(),
        },
    )


def _contents(work: Workspace, shard: ShardSpec, width: int) -> Iterator[bytes]:
    """Yield the bytes of a shard from the units it overlaps."""
    first = 0
    for unit in work.plan.units:
        if unit.source != shard.source or first >= shard.end:
            continue
        count = _encoded(work, unit.number)["tokens"][shard.part]
        start, end = max(shard.start - first, 0), min(shard.end - first, count)
        first += count
        if start < end:
            with work.file(encode.STAGE, unit.number, f".{shard.part}.bin").open("rb") as file:
                file.seek(start * width)
                left = (end - start) * width
                while left and (content := file.read(min(left, 1 << 20))):
                    left -= len(content)
                    yield content


def write_manifest(work: Workspace) -> None:
    """Write the manifest, the last file of all."""
    plan = work.plan
    units = {unit.number: _unit_facts(work, unit.number) for unit in plan.units}
    tokenizer = Tokenizer.from_file(str(work.tokenizer))
    _write_settings(work, tokenizer)
    manifest = {
        "kind": KIND,
        "format": FORMAT,
        "key": plan.key,
        "digest": _digest(plan, [facts["digest"] for facts in units.values()]),
        "seed": plan.config.seed,
        "heldOutFraction": plan.config.held_out_fraction,
        "bytesPerToken": plan.token_type.itemsize,
        "objective": "sft" if plan.config.chat else "pretrain",
        "nearDuplicates": {"words": minhash.RUN, "hashes": minhash.BANDS * minhash.ROWS},
        "tokenizer": {
            "file": TOKENIZER,
            "sha256": hashlib.sha256(work.tokenizer.read_bytes()).hexdigest(),
            "vocabSize": largest_token(tokenizer) + 1,
            "trained": plan.tokenizer is None,
            "endToken": end_token(tokenizer, plan.settings.eos),
            "firstTokens": list(plan.first_tokens),
        },
        **({"chatTemplate": plan.template.origin} if plan.template else {}),
        "sources": [_source(work, index, units) for index in range(len(plan.sources))],
    }
    work.write_json(work.manifest, manifest)
    shutil.rmtree(work.scratch, ignore_errors=True)


def _write_settings(work: Workspace, tokenizer: Tokenizer) -> None:
    """Write the files that belong to the tokenizer beside it, with the template of the job."""
    plan = work.plan
    found = settings_files(plan.tokenizer) if plan.tokenizer is not None else {}
    files = with_template(found, tokenizer, plan.template, plan.settings)
    for name, content in files.items():
        with work.draft(work.folder / name) as draft:
            draft.write_bytes(content)


def _digest(plan: PreparationPlan, units: list[str]) -> str:
    """Return the hash of the sources' content and of everything that determined the tokens."""
    return hashlib.sha256("\n".join([plan.shape, *units]).encode()).hexdigest()[:32]


def _unit_facts(work: Workspace, number: int) -> dict[str, Any]:
    facts: dict[str, Any] = read_json(work.file(extract.STAGE, number, ".json"))
    return facts


def _source(work: Workspace, index: int, units: dict[int, dict[str, Any]]) -> dict[str, Any]:
    source = work.plan.sources[index]
    near_groups = read_json(near_groups_path(work))
    mine = [unit.number for unit in work.plan.units if unit.source == index]
    counts: Counter[str] = sum((Counter(units[number]["counts"]) for number in mine), Counter())
    outcomes = dedup_split.tally(
        [np.load(work.file(dedup_split.STAGE, number, ".npy")) for number in mine]
    )
    infos = [
        read_json(shard_info_path(work, shard))
        for shard in shard_specs(work)
        if shard.source == index
    ]
    tokens = Counter(dict.fromkeys(encode.PARTS, 0))
    for shard in shard_specs(work):
        if shard.source == index:
            tokens[shard.part] += shard.end - shard.start
    read = counts.pop("read", 0)
    unusable = encode.UnusableExamples()
    for number in mine:
        unusable.add_json(_encoded(work, number)["unusable"])
    for field, remedy in list(unusable.remedies.values())[:1]:
        require_usable(source, unusable.causes, read, field, remedy)
    outcomes["train"] -= unusable.parts["train"]
    outcomes["heldOut"] -= unusable.parts["held-out"]
    counts.update({f"row: {kind}": count for kind, count in unusable.causes.counts.items()})
    report = ReadReport()
    report.add_json(work.plan.reports[index])
    report.dropped.add_json(unusable.causes.to_json())
    for number in mine:
        report.add_json(units[number]["report"])
    return {
        "name": source.name,
        "uri": source.uri,
        "weight": source.weight,
        "cleaning": source.cleaning,
        **report.to_json(),
        "truncated": unusable.truncated,
        "documents": {"read": read, "dropped": dict(sorted(counts.items())), **outcomes},
        "nearDuplicates": {
            "handling": source.near_duplicates,
            "similarity": source.similarity,
            **near_groups[index],
        },
        "tokens": dict(tokens),
        "shards": infos,
    }
