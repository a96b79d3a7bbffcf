"""Whether the manifest of prepared data accounts for every document of its source."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Run = tuple[str, ...]

_IDEOGRAPH = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Letters of scripts without spaces, each of which is compared as a word."""
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W{_IDEOGRAPH}]+|[^\w\s]")

WORDS = 5
"""Words in the runs of which near duplicates share most."""
LEAST_SHARED = 0.5
"""Share of common runs above which documents may be near. Most pairs that are found have 0.8."""


def require_accounted(
    source: Mapping[str, Any], expected: Sequence[str], found: Sequence[str]
) -> None:
    """Require that what is missing of the expected documents is what the manifest counts.

    `found` are the documents that are trained on or held out. None may be of another text.
    """
    counts = source["documents"]
    missing = Counter(expected)
    missing.subtract(found)
    invented = [text[:200] for text, count in missing.items() if count < 0]
    assert not invented, (len(invented), invented[:3])
    dropped, blank = counts["dropped"], [text for text in expected if not text.strip()]
    assert (counts["read"], dropped.get("empty", 0)) == (len(expected), len(blank))
    assert counts["train"] + counts["heldOut"] == len(found)
    left_out = sum(dropped.values()) + counts["exactDuplicate"] + counts["nearDuplicate"]
    assert missing.total() == left_out


def require_duplicates(
    source: Mapping[str, Any], expected: Sequence[str], found: Sequence[str]
) -> None:
    """Require that what is missing is blank, equal to a kept document, or near another one.

    For sources without a filter. Near documents form groups, of which one is kept, so the next one
    of a group may be missing, too.
    """
    kept = set(found)
    once = Counter(text for text in expected if text.strip())
    gone = [text for text in once if text not in kept]
    runs = {text: _runs(text) for text in once}
    alone = [text[:200] for text in gone if not _is_near(runs[text], text, runs)]
    assert not alone, (len(alone), alone[:3])
    # equal texts are removed first, so the copies of a near duplicate are exact ones
    assert source["documents"]["exactDuplicate"] == sum(once.values()) - len(once)
    assert source["documents"]["nearDuplicate"] == len(gone)


def _is_near(mine: set[Run], text: str, runs: Mapping[str, set[Run]]) -> bool:
    return any(
        len(mine & theirs) > LEAST_SHARED * len(mine | theirs)
        for other, theirs in runs.items()
        if other != text
    )


def _runs(text: str) -> set[Run]:
    words = _WORD.findall(text.casefold())
    return set(zip(*(words[start:] for start in range(WORDS)), strict=False))
