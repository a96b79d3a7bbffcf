"""What is kept: Gopher's rules one by one, and near duplicates by how near they are."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_trainer.data.preparation.minhash import band_hashes, clusters
from llmtrain_trainer.data.preparation.quality import (
    REPEATED_RUNS,
    TOP_RUNS,
    _repeated_runs,
    gopher,
)
from llmtrain_trainer.data.preparation.words import bare_words, runs, word_hashes
from llmtrain_trainer.data.text import normalize, normalize_code
from tests.support.examples import examples


def prose(speeches: list[Path]) -> str:
    return normalize(speeches[0].read_text())


def test_real_speeches_are_good(speeches: list[Path]) -> None:
    assert {gopher(normalize(path.read_text())) for path in speeches} == {None}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda text: text[:200], "words"),
        (lambda text: " ".join(w[:2] for w in text.split()), "word-length"),
        (lambda text: text.replace(" ", " # "), "symbols"),
        (
            lambda text: "\n".join("- " + line for line in text.replace(". ", ".\n").split("\n")),
            "bullets",
        ),
        (lambda text: text.replace(".\n", ".\n...\n").replace("\n\n", "…\n"), "ellipses"),
        (lambda text: text.replace(" a", " 12 34 56 78 90 "), "alphabetic"),
        (lambda text: " ".join(w for w in text.split() if len(w) > 4), "stop-words"),
        (lambda text: text + ("\nsee also the page" * 80), "duplicate-lines"),
        (lambda text: text + "".join(f" most certainly word{n}" for n in range(400)), "top-run-2"),
        (lambda text: (text + " " + text[: len(text) // 2]).replace("\n", " "), "repeated-run-5"),
    ],
)
def test_each_rule(change: object, rule: str, speeches: list[Path]) -> None:
    assert callable(change)
    assert gopher(change(prose(speeches))) == rule


def repetitions(words: list[str]) -> set[str]:
    """Return the rules of repeated runs that words violate, by their definition."""
    total = sum(map(len, words))
    found = set()
    for size, share in {**TOP_RUNS, **REPEATED_RUNS}.items():
        all_runs = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
        counts = Counter(all_runs)
        if max(counts.values(), default=0) < 2:
            continue
        if size in TOP_RUNS:
            [(top, count)] = counts.most_common(1)
            if count * sum(map(len, top)) > share * total:
                found.add(f"top-run-{size}")
            continue
        covered = {
            place
            for start, run in enumerate(all_runs)
            if run in all_runs[:start]
            for place in range(start, start + size)
        }
        if sum(len(words[place]) for place in covered) > share * total:
            found.add(f"repeated-run-{size}")
    return found


@examples(300)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=60),
    st.lists(st.integers(0, 60), max_size=12),
    st.integers(0, 20),
)
def test_repeated_runs_by_their_definition(base: list[int], where: list[int], size: int) -> None:
    """Words of equal length, into which a run of some of them is put several times."""
    numbers = list(base)
    for place in where:
        numbers[place % len(numbers) : 0] = base[:size]
    words = [f"w{number:02}" for number in numbers]
    assert set(_repeated_runs(words, 1)) == repetitions(words)


def jaccard(one: str, other: str) -> float:
    first, second = (set(runs(word_hashes(bare_words(t)), 5).tolist()) for t in (one, other))
    return len(first & second) / len(first | second)


def test_the_nearer_two_texts_the_likelier_they_meet(speeches: list[Path]) -> None:
    """All pairs at 0.9 and none of different speeches; the curve of the banding between."""
    chance = random.Random(0)
    met: dict[float, list[bool]] = {}
    for path in speeches:
        words = normalize(path.read_text()).split()[:1500]
        for share in (0.002, 0.02, 0.2):
            other = [w if chance.random() > share else f"new{chance.random()}" for w in words]
            near = jaccard(" ".join(words), " ".join(other))
            same = band_hashes(" ".join(words)) == band_hashes(" ".join(other))
            met.setdefault(share, []).append(bool(same.any()))
            assert near > 0.9 or share > 0.002
            assert near < 0.35 or share < 0.2
    assert all(met[0.002])
    assert sum(met[0.02]) > 0.7 * len(speeches)
    assert sum(met[0.2]) <= 1
    bands = np.array([band_hashes(normalize(path.read_text())) for path in speeches])
    assert clusters(bands).tolist() == list(range(len(speeches)))


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=1, max_size=12))
def test_clusters_are_the_connected_components(rows: list[list[int]]) -> None:
    bands = np.array([[a, b] for a, b in rows], np.uint64)
    found = clusters(bands)
    groups = [{index} for index in range(len(rows))]
    for index, row in enumerate(rows):
        for other in range(index):
            if row[0] == rows[other][0] or row[1] == rows[other][1]:
                joined = groups[index] | groups[other]
                for member in joined:
                    groups[member] = joined
    assert found.tolist() == [min(group) for group in groups]


@given(st.text(max_size=200))
def test_code_keeps_indentation_and_normalising_is_idempotent(text: str) -> None:
    clean = normalize_code(text)
    assert normalize_code(clean) == clean
    assert normalize_code("if x:\r\n\ty = 'a\u0308'  \r\n") == "if x:\n\ty = 'a\u0308'"


def test_words_of_scripts_without_spaces() -> None:
    assert bare_words("Don't 吃饭了, 한국!") == ["don", "t", "吃", "饭", "了", "한", "국"]
