"""A local cache of one resource, kept current by list and watch.

Callers rely on these invariants:
- before `synced` is set, the cache is complete and `on_change` was called for every object;
- an object that was deleted between two watches is reported as deleted by the next list;
- `last_version` never decreases, and the cache includes every change up to it;
- an object that cannot be read affects no other one: its last readable state stays in the cache;
- a record holds only the fields that the operator uses: an object of 6 KB becomes about 500 bytes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from llmtrain_core.api.conditions import clean_text
from llmtrain_operator.errors import (
    ApiError,
    ForbiddenError,
    GoneError,
    NotFoundError,
    api_error,
)
from llmtrain_operator.kube.api import Item, KubeApi
from llmtrain_operator.kube.decoding import read_event
from llmtrain_operator.kube.paging import list_pages
from llmtrain_operator.kube.resources import Resource

log = logging.getLogger(__name__)

MIN_DELAY = 0.1
MAX_DELAY = 30.0
HEALTHY_SECONDS = 10.0
"""After a watch that lasted this long, the reconnect delay starts again at its minimum."""
MISSING_SECONDS = 30.0
"""Interval of the lists of an optional resource that the API server does not have."""
WATCH_SECONDS = (240, 360)
"""Shortest and longest duration of a watch."""

_UNKNOWN = "unknown"
"""Stands for the UID of an object that has none that can be read."""

R = TypeVar("R")


class EventCounter(Protocol):
    """Counts the events of an informer."""

    def event(self, informer: str, kind: str) -> None:
        """Count one event: added, modified, deleted, unreadable, relist or reconnect."""
        ...


@dataclass(frozen=True, slots=True)
class Selection:
    """The objects to follow: all, or those that a namespace and selectors match."""

    resource: Resource
    namespace: str | None = None
    labels: str = ""
    fields: str = ""


@dataclass(slots=True)
class _Index(Generic[R]):
    key: Callable[[R], str | None]
    entries: dict[str, dict[str, R]] = field(default_factory=dict)


class Informer(Generic[R]):
    """The cache.

    `decode` converts an object to a record, or to None to leave it out. `decode_damaged` does so
    for an object of which a part could not be read; by default it is skipped. With `optional`, the
    cache is empty while the API server does not have the resource, or forbids to list it.
    """

    def __init__(
        self,
        name: str,
        cluster: KubeApi,
        selection: Selection,
        decode: Callable[[Mapping[str, Any]], R | None],
        *,
        decode_damaged: Callable[[Mapping[str, Any], str], R | None] | None = None,
        indexes: Mapping[str, Callable[[R], str | None]] | None = None,
        on_change: Callable[[R | None, R | None], None] = lambda _old, _new: None,
        observer: EventCounter | None = None,
        page: int = 500,
        optional: bool = False,
    ):
        self.name = name
        self.missing = ""
        """Why an optional resource cannot be listed; empty if it can."""
        self.synced = asyncio.Event()
        self.last_version = 0
        self.last_contact = time.monotonic()
        self._cluster = cluster
        self._selection = selection
        self._decode = decode
        self._decode_damaged = decode_damaged
        self._on_change = on_change
        self._observer = observer
        self._page = page
        self._optional = optional
        self._records: dict[str, R] = {}
        self._versions: dict[str, int] = {}
        self._unreadable: set[str] = set()
        self._indexes = {key: _Index(of) for key, of in (indexes or {}).items()}
        self._resume = ""
        self._needs_list = True
        self._watching: asyncio.Timeout | None = None

    def get(self, uid: str) -> R | None:
        """Return the record of an object, or None."""
        return self._records.get(uid)

    def values(self) -> Iterable[R]:
        """Return all records."""
        return self._records.values()

    def by_index(self, index: str, value: str) -> list[R]:
        """Return the records whose index key has this value."""
        return list(self._indexes[index].entries.get(value, {}).values())

    def __len__(self) -> int:
        return len(self._records)

    @property
    def unreadable(self) -> int:
        """Number of existing objects whose newest state cannot be read."""
        return len(self._unreadable)

    @property
    def staleness(self) -> float:
        """Seconds since the last response of the server.

        Bookmarks arrive once a minute, but not for resources without any event. Their watches
        end after `WATCH_SECONDS` at most, and the start of the next one is a response.
        """
        return time.monotonic() - self.last_contact

    def relist(self) -> None:
        """Request a new list now, because the cache may be wrong."""
        self._needs_list = True
        if self._watching is not None and not self._watching.expired():
            self._watching.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Keep the cache current until the task is cancelled."""
        delay = 0.0
        while True:
            started = time.monotonic()
            try:
                if self._needs_list:
                    await self._relist()
                await self._watch()
                delay = _next_delay(delay, started)
            except GoneError:
                self._needs_list = True
                delay = _next_delay(delay, started)
            except (NotFoundError, ForbiddenError) as error:
                delay = MISSING_SECONDS if self._optional else _next_delay(delay, started)
                self._not_listed(error)
            except ApiError as error:
                delay = max(_next_delay(delay, started), error.retry_after)
                log.warning("informer=%s list or watch failed: %s", self.name, error)
            except (ValueError, KeyError, TypeError):
                # A malformed response must not end the informer; a new list replaces the cache, and
                # leaves out what cannot be read.
                self._needs_list = True
                delay = _next_delay(delay, started)
                log.exception("informer=%s received a malformed response", self.name)
            self._count("reconnect")
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))

    def _not_listed(self, error: ApiError) -> None:
        """Empty the cache of an optional resource, and start with a list next time."""
        text = clean_text(str(error), 300)
        if not self._optional or text != self.missing:
            log.warning("informer=%s list or watch failed: %s", self.name, text)
        if not self._optional:
            return
        self.missing, self._needs_list = text, True
        self.last_contact = time.monotonic()
        for uid in [*self._versions]:
            self._remove(uid)
        self.synced.set()

    async def _relist(self) -> None:
        self._needs_list = False
        try:
            await self._list()
        except BaseException:
            self._needs_list = True
            raise

    async def _list(self) -> None:
        """Replace the cache by the list of the server; remove objects that are not in it."""
        seen: set[str] = set()
        version = 0
        self._unreadable.discard(_UNKNOWN)
        wanted = self._selection
        async for page in list_pages(
            self._cluster,
            wanted.resource,
            wanted.namespace,
            labels=wanted.labels,
            fields=wanted.fields,
            most=self._page,
        ):
            self.last_contact = time.monotonic()
            for item in page.items:
                metadata = item.object.get("metadata") or {}
                if "uid" in metadata:
                    seen.add(metadata["uid"])
                    self._upsert(item)
                else:
                    self._report(_UNKNOWN, item.damage)
            version = max(version, page.version)
            await asyncio.sleep(0)
        for uid in [uid for uid in self._versions if uid not in seen]:
            self._remove(uid)
        self._resume = str(version)
        self.last_version = max(self.last_version, version)
        self.missing = ""
        self._count("relist")
        self.synced.set()

    async def _watch(self) -> None:
        """Watch until the server or `relist` ends the watch."""
        wanted = self._selection
        try:
            async with asyncio.timeout(0 if self._needs_list else None) as self._watching:
                async with self._cluster.watch(
                    wanted.resource,
                    wanted.namespace,
                    version=self._resume,
                    labels=wanted.labels,
                    fields=wanted.fields,
                    seconds=random.randint(*WATCH_SECONDS),
                ) as batches:
                    self.last_contact = time.monotonic()
                    async for lines in batches:
                        for line in lines:
                            self._handle_line(line)
                        self.last_contact = time.monotonic()
        except TimeoutError:
            if not self._watching or not self._watching.expired():
                raise
        finally:
            self._watching = None

    def _handle_line(self, line: bytes) -> None:
        kind, item = read_event(line)
        if kind == "ERROR":
            status = item.object
            code = int(status.get("code") or 500)
            raise api_error(code, status.get("reason", ""), status.get("message", ""))
        version = item.object["metadata"]["resourceVersion"]
        if kind == "DELETED":
            self._remove(item.object["metadata"]["uid"])
        elif kind != "BOOKMARK":
            self._upsert(item)
        self._resume = version
        self.last_version = max(self.last_version, int(version))

    def _upsert(self, item: Item) -> None:
        metadata = item.object["metadata"]
        uid, version = metadata["uid"], int(metadata["resourceVersion"])
        known = self._versions.get(uid)
        if known is not None and version <= known:
            return
        self._versions[uid] = version
        old = self._records.get(uid)
        self._count("added" if known is None else "modified")
        new = self._read(uid, item, old)
        if old == new:
            return
        self._store(uid, old, new)

    def _read(self, uid: str, item: Item, old: R | None) -> R | None:
        """Return the new record of an object, or the old one if it cannot be read."""
        try:
            if not item.damage:
                record = self._decode(item.object)
            elif self._decode_damaged is not None:
                record = self._decode_damaged(item.object, item.damage)
            else:
                self._report(uid, item.damage)
                return old
        except Exception as error:  # Whatever one object causes, the others are read.
            self._report(uid, f"{type(error).__name__}: {error}")
            return old
        if not item.damage:
            self._unreadable.discard(uid)
        else:
            self._report(uid, item.damage)
        return record

    def _report(self, uid: str, why: str) -> None:
        """Log an object that cannot be read, once until it can be read again."""
        self._count("unreadable")
        if uid not in self._unreadable:
            text = clean_text(why, 300)
            log.error("informer=%s uid=%s cannot be read: %s", self.name, uid, text)
            self._unreadable.add(uid)

    def _remove(self, uid: str) -> None:
        if self._versions.pop(uid, None) is None:
            return
        self._count("deleted")
        self._unreadable.discard(uid)
        old = self._records.get(uid)
        if old is not None:
            self._store(uid, old, None)

    def _store(self, uid: str, old: R | None, new: R | None) -> None:
        if new is None:
            self._records.pop(uid, None)
        else:
            self._records[uid] = new
        for index in self._indexes.values():
            before = index.key(old) if old is not None else None
            after = index.key(new) if new is not None else None
            if before is not None and before != after:
                bucket = index.entries[before]
                del bucket[uid]
                if not bucket:
                    del index.entries[before]
            if after is not None and new is not None:
                index.entries.setdefault(after, {})[uid] = new
        try:
            self._on_change(old, new)
        except Exception:
            # The cache has the change. What follows from one object must not stop the others.
            log.exception("informer=%s uid=%s: reaction to the change failed", self.name, uid)

    def _count(self, kind: str) -> None:
        if self._observer is not None:
            self._observer.event(self.name, kind)


def _next_delay(delay: float, started: float) -> float:
    if time.monotonic() - started > HEALTHY_SECONDS:
        return MIN_DELAY
    return min(MAX_DELAY, max(MIN_DELAY, delay * 2))
