"""The language of a document, by naive Bayes over byte n-grams (py3langid)."""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import islice

from py3langid.langid import MODEL_FILE, LanguageIdentifier

CHARACTERS = 2000
"""Characters at the start of a document from which its language is detected."""
UNDETERMINED = "und"
"""For a text without words in any language (ISO 639-2)."""

UNSPACED = frozenset(("zh", "ja", "th", "lo", "km", "my", "bo", "dz"))
"""Languages that do not write spaces between words."""

_LETTERS = 16
"""Letters of a text with words, at least."""


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE)


def known_languages() -> frozenset[str]:
    """Return the codes that `language_of` can return, but `UNDETERMINED`."""
    return frozenset(_identifier().labels)


def language_of(text: str) -> str:
    """Return the ISO 639 code of the likeliest language of a text."""
    start = text[:CHARACTERS]
    letters = (char for char in start if unicodedata.category(char)[0] == "L")
    if len(list(islice(letters, _LETTERS))) < _LETTERS:
        return UNDETERMINED
    return str(_identifier().classify(start)[0])
