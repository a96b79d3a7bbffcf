"""Read what programs of the user wrote."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes) -> Any:
    """Return what JSON says; None where it makes no sense, or nests too deep to be read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
