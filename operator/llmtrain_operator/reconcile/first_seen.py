"""For how long this process has seen something, on its monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class FirstSeen(Generic[Key]):
    """The times since which each of some findings holds without a break."""

    def __init__(self) -> None:
        self._since: dict[Key, float] = {}

    def seconds(self, found: Iterable[Key]) -> dict[Key, float]:
        """Return for how long each of these holds. Others do not hold any more."""
        now = time.monotonic()
        self._since = {key: self._since.get(key, now) for key in found}
        return {key: now - since for key, since in self._since.items()}
