"""Quality filter: the rules of Gopher (arXiv:2112.11446, A.1.1).

They were designed for English prose from the web. For another language, the stop words, which are
English, do not apply, and words may be longer. A language without spaces between words is measured
in characters. Every rule has a name, which is counted in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmtrain_trainer.data.preparation.languages import UNSPACED
from llmtrain_trainer.data.preparation.words import runs_by_length, word_hashes

WORDS = (50, 100_000)
MEAN_WORD_LENGTH = (3.0, 10.0)
MEAN_WORD_LENGTH_ELSEWHERE = (2.0, 20.0)
"""For other languages than English."""
CHARACTERS_PER_WORD = 2
"""Where words are not separated."""
SYMBOLS_PER_WORD = 0.1
BULLET_LINES = 0.9
ELLIPSIS_LINES = 0.3
ALPHABETIC_WORDS = 0.8
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
LEAST_STOP_WORDS = 2

DUPLICATE_LINES, DUPLICATE_LINE_CHARACTERS = 0.30, 0.20
DUPLICATE_PARAGRAPHS, DUPLICATE_PARAGRAPH_CHARACTERS = 0.30, 0.20
TOP_RUNS = {2: 0.20, 3: 0.18, 4: 0.16}
"""Words in a run -> largest fraction of characters in the most frequent run."""
REPEATED_RUNS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Words in a run -> largest fraction of characters in repeated runs."""


def gopher(text: str, language: str = "en") -> str | None:
    """Return the first rule that a normalized document violates, or None."""
    if language in UNSPACED:
        words, size = [char for char in text if not char.isspace()], CHARACTERS_PER_WORD
    else:
        words, size = text.split(), 1
    rule = next(_prose(text, words, size, language), None)
    return rule or next(_repetition(text, words, size), None)


def _prose(text: str, words: Sequence[str], size: int, language: str) -> Iterator[str]:
    """Yield the rules of prose that are violated. `size` is the number of `words` in a word."""
    if not WORDS[0] * size <= len(words) <= WORDS[1] * size:
        yield "words"
        return
    least, most = MEAN_WORD_LENGTH if language == "en" else MEAN_WORD_LENGTH_ELSEWHERE
    if size == 1 and not least <= sum(map(len, words)) / len(words) <= most:
        yield "word-length"
    if max(text.count("#"), text.count("...") + text.count("…")) > SYMBOLS_PER_WORD * len(words):
        yield "symbols"
    lines = [line for line in text.split("\n") if line]
    if sum(line.startswith(("-", "*", "•")) for line in lines) > BULLET_LINES * len(lines):
        yield "bullets"
    if sum(line.endswith(("...", "…")) for line in lines) > ELLIPSIS_LINES * len(lines):
        yield "ellipses"
    if size > 1:
        return
    needed = ALPHABETIC_WORDS * len(words)
    if sum(map(str.isalpha, words)) < needed and sum(map(_has_letter, words)) < needed:
        yield "alphabetic"
    if language == "en" and len(STOP_WORDS.intersection(map(str.lower, words))) < LEAST_STOP_WORDS:
        yield "stop-words"


def _has_letter(word: str) -> bool:
    return any(map(str.isalpha, word))


def _repetition(text: str, words: Sequence[str], size: int) -> Iterator[str]:
    for parts, share, characters, name in (
        (text.split("\n"), DUPLICATE_LINES, DUPLICATE_LINE_CHARACTERS, "lines"),
        (text.split("\n\n"), DUPLICATE_PARAGRAPHS, DUPLICATE_PARAGRAPH_CHARACTERS, "paragraphs"),
    ):
        whole = [part for part in parts if part]
        extra = len(whole) - len(set(whole))
        lost = sum(map(len, whole)) - sum(map(len, set(whole)))
        if extra > share * len(whole) or lost > characters * len(text):
            yield f"duplicate-{name}"
    yield from _repeated_runs(words, size)


def _repeated_runs(words: Sequence[str], per_word: int) -> Iterator[str]:
    hashes = word_hashes(list(words))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    total = int(lengths.sum())
    # characters of the 1, 2, .. longest words: no run of as many words has more
    longest = np.cumsum(np.sort(lengths)[::-1])
    for size, found in enumerate(runs_by_length(hashes, max(REPEATED_RUNS) * per_word), 1):
        count, rest = divmod(size, per_word)
        if rest or count < min(TOP_RUNS):
            continue
        ordered = np.sort(found)
        is_first = np.concatenate(([True], ordered[1:] != ordered[:-1], [True]))
        equal = np.diff(np.flatnonzero(is_first))
        repeats = len(found) - len(equal)
        if not repeats:
            return  # no longer run is repeated
        is_top = count in TOP_RUNS
        most = (TOP_RUNS if is_top else REPEATED_RUNS)[count] * total
        if (equal.max() if is_top else repeats) * longest[size - 1] <= most:
            continue  # not more characters even if these were the longest words
        _, first, counts = np.unique(found, return_index=True, return_counts=True)
        if is_top:
            top = int(counts.argmax())
            start = int(first[top])
            if counts[top] * lengths[start : start + size].sum() > most:
                yield f"top-run-{count}"
            continue
        repeated = np.ones(len(found), bool)
        repeated[first] = False
        covered = np.zeros(len(words) + 1, np.int64)
        np.add.at(covered, np.flatnonzero(repeated), 1)
        np.add.at(covered, np.flatnonzero(repeated) + size, -1)
        if lengths[np.cumsum(covered[:-1]) > 0].sum() > most:
            yield f"repeated-run-{count}"
