"""Print the folder of the demonstration data for fine-tuning: WordNet's definitions.

WordNet 3.0 (Princeton University; free for any use with its notice) is downloaded by apt from the
Debian archive and unpacked into the cache. Nothing is installed, and root is not needed. The folder
is created once.

    glosses.txt        words and their meanings, one per paragraph: to train a base model
    pairs.jsonl        {"prompt": "beagle: a small short-legged ...", "response": "animal"}

The two files have no noun in common: a hash decides which file a noun is in. A response is the
lexicographer's file of the noun, one of 25 kinds (lexnames(5WN)).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmtrain_devcluster.paths import cache_root

PACKAGE = "wordnet-base"
EDITION = 1
"""Increased whenever the same dictionary would give other files."""

_NAMES = """
act animal artifact attribute body cognition communication event feeling food group location motive
object person phenomenon plant possession process quantity relation shape state substance time
"""
KINDS = dict(enumerate(_NAMES.split(), start=4))
"""Kind of a noun by lexicographer's file. File 3 holds only the top nouns of the others."""

LONGEST = 100
"""Maximum characters of a prompt, so that the examples fit short sequences."""


@dataclass(frozen=True)
class Entry:
    """One meaning: its first word, its definition, and its kind."""

    word: str
    meaning: str
    kind: str | None
    """None for verbs, adjectives and adverbs."""

    @property
    def text(self) -> str:
        """The word and its definition in one line."""
        return f"{self.word}: {self.meaning}"

    @property
    def is_pair(self) -> bool:
        """The entry is one of the pairs, not part of the text for the base model."""
        odd = hashlib.sha256(self.text.encode()).digest()[0] & 1
        return self.kind is not None and bool(odd) and len(self.text) <= LONGEST


def main() -> int:
    """Create the folder if it is missing, and print its path."""
    cache = cache_root()
    folder = cache / f"definitions-{EDITION}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="definitions.") as name:
            draft = Path(name)
            try:
                _write(draft / "made", list(_entries(_unpacked(draft))))
            except (OSError, subprocess.CalledProcessError) as error:
                message = getattr(error, "stderr", None) or error
                print(f"definitions: cannot get {PACKAGE} by apt-get: {message}", file=sys.stderr)
                return 1
            try:
                (draft / "made").rename(folder)
            except OSError:  # another clone created it first; both are equal
                if not folder.is_dir():
                    raise
    print(folder)
    return 0


def _unpacked(draft: Path) -> Path:
    """Download and unpack the package. If needed, update apt's lists in a folder of our own."""
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
    """Yield all meanings in file order (wndb(5WN))."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (wordnet / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the license
                continue
            fields, _, gloss = line.partition("|")
            _, number, _, _, word, *_ = fields.split()
            meaning = gloss.split('; "')[0].strip()
            if meaning and (part != "noun" or int(number) in KINDS):
                name = word.split("(")[0].replace("_", " ")
                yield Entry(name, meaning, KINDS.get(int(number)) if part == "noun" else None)


def _write(folder: Path, entries: list[Entry]) -> None:
    folder.mkdir()
    paragraphs = "\n\n".join(entry.text for entry in entries if not entry.is_pair)
    (folder / "glosses.txt").write_text(paragraphs + "\n", encoding="utf-8")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for entry in entries:
            if entry.is_pair:
                pair = {"prompt": entry.text, "response": entry.kind}
                file.write(json.dumps(pair, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
