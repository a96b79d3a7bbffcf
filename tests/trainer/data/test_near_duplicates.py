"""Near duplicates: removed, tuned or kept per source, and shown."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from llmtrain_cli.commands.data import app
from llmtrain_trainer.config import DataConfig, Source
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.minhash import BANDS, ROWS, band_hashes, rows_for
from llmtrain_trainer.data.preparation.run import run_share
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.prepared import read_manifest
from llmtrain_trainer.errors import InputError


def problem(number: int) -> str:
    """Return one of many problems that differ in few words."""
    chance = random.Random(number)
    first, second = chance.randrange(2, 99), chance.randrange(2, 99)
    return (
        f"Tom has {first} apples and buys as many as there are days in the week. He gives a third"
        " of them to his sister Mary, who puts them into a basket on the kitchen table next to the"
        f" window. How many apples are left for Tom after {second} days, and why is that so?"
    )


def facts(to: Path, texts: list[str], **changes: Any) -> dict[str, Any]:
    path = to / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    config = DataConfig((Source("s", f"file://{path}", "s", **changes),), 0.1, 400, 0)
    run_share(Workspace(plan_preparation(config), to / "out"))
    found: dict[str, Any] = read_manifest(to / "out")["sources"][0]
    return found


def kept(source: dict[str, Any]) -> int:
    documents: dict[str, int] = source["documents"]
    return documents["train"] + documents["heldOut"]


PROBLEMS = [problem(number) for number in range(60)]
OTHERS = [
    " ".join(f"{random.Random(number * 99 + place).randrange(10**6):x}" for place in range(40))
    for number in range(4)
]


def test_problems_of_one_template_are_removed_and_shown(tmp_path: Path) -> None:
    source = facts(tmp_path, [*PROBLEMS, *OTHERS])
    near = source["nearDuplicates"]
    assert kept(source) < 20
    removed = [group["removed"] for group in near["largest"]]
    assert removed == sorted(removed, reverse=True)
    assert sum(removed) <= source["documents"]["nearDuplicate"] and near["groups"] >= len(removed)
    largest = near["largest"][0]
    shown = [largest["kept"], *largest["first"]]
    assert len({each["name"] for each in shown}) == min(4, 1 + largest["removed"])
    texts = {f"s/a.jsonl#{number}": text for number, text in enumerate(PROBLEMS, 1)}
    assert all(texts[each["name"]].startswith(each["text"]) for each in shown)


def test_they_are_kept_if_the_source_says_so(tmp_path: Path) -> None:
    source = facts(tmp_path, [*PROBLEMS, PROBLEMS[0]], near_duplicates="keep")
    assert kept(source) == len(set(PROBLEMS))
    assert source["documents"]["exactDuplicate"] == 1
    assert source["nearDuplicates"]["largest"] == []


def test_a_higher_similarity_keeps_more(tmp_path: Path) -> None:
    counts = []
    for similarity in (0.8, 0.9, 0.97):
        folder = tmp_path / str(similarity)
        folder.mkdir()
        counts.append(kept(facts(folder, [*PROBLEMS, *OTHERS], similarity=similarity)))
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_nothing_but_near_duplicates_is_refused_with_their_number(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dropped: 59 nearDuplicate\)") as caught:
        facts(tmp_path, PROBLEMS)
    assert "nearDuplicates: keep" in str(caught.value.remedy)


@pytest.mark.parametrize("similarity", [0.8, 0.85, 0.9, 0.95, 0.99])
def test_a_pair_of_the_similarity_is_found_nine_times_of_ten(similarity: float) -> None:
    rows = rows_for(similarity)
    bands = BANDS * ROWS // rows
    assert 1 - (1 - similarity**rows) ** bands >= 0.9
    assert rows >= ROWS and bands <= BANDS
    assert (rows == ROWS) == (similarity == 0.8)


def test_bands_of_other_lengths_never_meet() -> None:
    text = problem(1)
    found = [set(band_hashes(text, rows_for(similarity)).tolist()) for similarity in (0.8, 0.9)]
    assert not found[0] & found[1] and len(found[0]) == BANDS


@pytest.mark.parametrize(
    "texts",
    [
        ["".join(random.Random(n).choices("∑∂→≤≥±×÷∫√", k=60)) for n in range(50)],
        [f"{'=' * n} !" for n in range(1, 51)],
        [f"🙂{'🙃' * n}" for n in range(50)],
        ["a + b", "a - b", "a * b", "b / a"],
        [f"x{op}y{op}z{op}(a{op}b){op}c{op}1" for op in "+-*/"],
    ],
    ids=["symbols", "rules", "emoji", "short", "formulas"],
)
def test_documents_without_words_are_not_all_equal(texts: list[str], tmp_path: Path) -> None:
    assert kept(facts(tmp_path, texts)) == len(set(texts))


def test_prose_is_compared_without_its_punctuation() -> None:
    one, other = problem(1), problem(1).replace(",", ";").replace(".", "!")
    assert np.array_equal(band_hashes(one), band_hashes(other))


def test_the_command_shows_the_largest_group(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in [*PROBLEMS, *OTHERS]))
    arguments = ["prepare", "--source", f"s=file://{path}", "--vocab-size", "400"]
    shown = CliRunner().invoke(app, [*arguments, "--to", str(tmp_path / "one")])
    assert shown.exit_code == 0, shown.output
    assert "near duplicates of s/a.jsonl#" in shown.output and "'Tom has" in shown.output
    arguments[2] += ",nearDuplicates=keep,similarity=0.9"
    shown = CliRunner().invoke(app, [*arguments, "--to", str(tmp_path / "two")])
    assert shown.exit_code == 0 and "near duplicates of" not in shown.output
