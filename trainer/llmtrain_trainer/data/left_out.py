"""What of the sources is not trained on, in sentences for logs and the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LONGEST = 500
"""Characters of a sentence. It quotes names and text of the sources."""


def sentences(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was left out of each source, by kind, with the first examples."""
    for source in manifest["sources"]:
        for sentence in _of_source(source):
            yield f"{source['name']}: {' '.join(sentence.split())}"[:LONGEST]


def tails(manifest: Mapping[str, Any], sequence: int) -> Iterator[str]:
    """Yield how many tokens at the end of each source are in no sequence of training.

    Examples have no such end: each is a sequence.
    """
    for source in () if manifest.get("objective") == "sft" else manifest["sources"]:
        count = source["tokens"]["train"]
        if count > sequence and (rest := (count - 1) % sequence):
            yield (
                f"{source['name']}: the last {rest} of {count} tokens are less than a sequence of"
                f" {sequence} and are not trained on"
            )


def _of_source(source: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("skipped", "dropped"):
        for name, facts in source.get(kind, {}).items():
            yield f"{kind} {facts['count']} ({name}): {', '.join(facts['first'])}"
    for name, count in source.get("documents", {}).get("dropped", {}).items():
        if not name.startswith("row: "):  # their causes are shown above
            yield f"dropped {count} ({name})"
    for name, facts in source.get("undecoded", {}).items():
        yield f"kept {facts['count']} documents with {name}: {', '.join(facts['first'])}"
    if source.get("truncated"):
        yield f"cut the end of {source['truncated']} examples"
    for group in source.get("nearDuplicates", {}).get("largest", []):
        alike = group["first"][0]
        yield (
            f"removed {group['removed']} near duplicates of {group['kept']['name']},"
            f" such as {alike['name']}: {alike['text']!r}"
        )
