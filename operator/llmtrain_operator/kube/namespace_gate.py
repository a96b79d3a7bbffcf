"""A bound on the writes of jobs that are under way at the same time, for each namespace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Gate:
    semaphore: asyncio.Semaphore
    users: int = field(default=0)


class NamespaceGate:
    """At most `limit` writes at a time for each namespace.

    A job of a megabyte is slow to write. If hundreds of them were written at once, the API server
    would answer no other request, and the writes themselves would time out and be repeated.
    """

    def __init__(self, limit: int = 4):
        self._limit = limit
        self._gates: dict[str, _Gate] = {}

    def __len__(self) -> int:
        return len(self._gates)

    @asynccontextmanager
    async def enter(self, namespace: str) -> AsyncIterator[None]:
        """Wait until a write may begin; it ends with the context."""
        gate = self._gates.get(namespace)
        if gate is None:
            gate = self._gates[namespace] = _Gate(asyncio.Semaphore(self._limit))
        gate.users += 1
        try:
            async with gate.semaphore:
                yield
        finally:
            gate.users -= 1
            if not gate.users:
                del self._gates[namespace]
