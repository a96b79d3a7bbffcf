"""Print the folder of the demonstration set for fine-tuning, made once: WordNet's definitions.

WordNet 3.0 (Princeton University; free for any use with its notice) is taken from the Debian
archive by apt, as a file that is unpacked into the cache: nothing is installed, and root is not
needed.

    glosses.txt        words and what they mean, a paragraph each: to train a base on
    pairs.jsonl        {"prompt": "beagle: a small short-legged ...", "response": "animal"}
    held in common     nothing: a noun is in one of the two, by a hash

A response is the lexicographer's file that the noun is in, one of 25 kinds (lexnames(5WN)).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "wordnet-base"
EDITION = 1
"""Raised whenever the same dictionary would give other files."""

_NAMES = """
act animal artifact attribute body cognition communication event feeling food group location motive
object person phenomenon plant possession process quantity relation shape state substance time
"""
KINDS = dict(enumerate(_NAMES.split(), start=4))
"""Nouns by lexicographer's file; its number 3 holds only the tops of the others."""

LONGEST = 100
"""Characters of a prompt: the examples stay within short sequences."""


@dataclass(frozen=True)
class Entry:
    """One meaning: its first word, what it means, and its kind."""

    word: str
    meaning: str
    kind: str | None
    """None for verbs, adjectives and adverbs."""

    @property
    def text(self) -> str:
        """Word and meaning in a line."""
        return f"{self.word}: {self.meaning}"

    @property
    def tells(self) -> bool:
        """Whether the entry is one of the pairs, and not of the base's text."""
        odd = hashlib.sha256(self.text.encode()).digest()[0] & 1
        return self.kind is not None and bool(odd) and len(self.text) <= LONGEST


def main() -> int:
    """Make the folder where it is missing, and print its path."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmtrain"
    folder = cache / f"definitions-{EDITION}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="definitions.") as name:
            draft = Path(name)
            try:
                _write(draft / "made", list(_entries(_unpacked(draft))))
            except (OSError, subprocess.CalledProcessError) as error:
                said = getattr(error, "stderr", None) or error
                print(f"definitions: cannot get {PACKAGE} by apt-get: {said}", file=sys.stderr)
                return 1
            try:
                (draft / "made").rename(folder)
            except OSError:  # another clone was faster; either is good
                if not folder.is_dir():
                    raise
    print(folder)
    return 0


def _unpacked(draft: Path) -> Path:
    """Download and unpack the package; renews apt's lists, in a folder of our own, if need be."""
    try:
        _run(draft, "apt-get", "download", PACKAGE)
    except subprocess.CalledProcessError:
        for part in ("state/lists/partial", "cache/archives/partial"):
            (draft / part).mkdir(parents=True)
        own = (
            "-o",
            f"Dir::State={draft}/state",
            "-o",
            f"Dir::Cache={draft}/cache",
            "-o",
            "Dir::State::status=/var/lib/dpkg/status",
        )
        _run(draft, "apt-get", *own, "-qq", "update")
        _run(draft, "apt-get", *own, "download", PACKAGE)
    package = next(draft.glob("*.deb"))
    _run(draft, "dpkg-deb", "-x", package.name, "files")
    return draft / "files" / "usr" / "share" / "wordnet"


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


def _entries(wordnet: Path) -> Iterator[Entry]:
    """Yield all meanings, in the order of the files (wndb(5WN))."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (wordnet / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            fields, _, gloss = line.partition("|")
            _, number, _, _, word, *_ = fields.split()
            meaning = gloss.split('; "')[0].strip()
            if meaning and (part != "noun" or int(number) in KINDS):
                name = word.split("(")[0].replace("_", " ")
                yield Entry(name, meaning, KINDS.get(int(number)) if part == "noun" else None)


def _write(folder: Path, entries: list[Entry]) -> None:
    folder.mkdir()
    paragraphs = "\n\n".join(entry.text for entry in entries if not entry.tells)
    (folder / "glosses.txt").write_text(paragraphs + "\n", encoding="utf-8")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for entry in entries:
            if entry.tells:
                pair = {"prompt": entry.text, "response": entry.kind}
                file.write(json.dumps(pair, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
