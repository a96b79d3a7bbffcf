"""The target value of tokens that the loss ignores."""

from __future__ import annotations

IGNORE_INDEX = -100
"""The default `ignore_index` of torch's cross entropy."""

PADDING = -1
"""Number of the document, or example, of a token that fills a short sequence."""
