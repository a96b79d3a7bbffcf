"""The one loop that decides who sits where: snapshot, decide, assume; the job's loop commits.

A gang is a global decision, so it is made in one place. The scheduler writes nothing. An offer is
kept free until the job's status shows it (then the stored placement counts) or the job turned it
down. A job that has to stop for another is told so until its status shows that it did, or somebody
else gets the room; its nodes go on counting until its pods have ended, and the job that it stops
for is first among its equals until it has them. All of that is memory that may be lost: a new
process decides anew on what it finds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from llmtrain_core.api.conditions import Reason
from llmtrain_core.queueing import Running
from llmtrain_core.queueing.cycle import SOON_SECONDS
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.scheduler.cycle import Decided, World, better, decide
from llmtrain_operator.scheduler.decisions import Eviction, Hint, Offer, Refusal, Verdict
from llmtrain_operator.scheduler.jobs import Candidate
from llmtrain_operator.scheduler.running_jobs import Sitting

log = logging.getLogger(__name__)

QUIET_SECONDS = 0.05
"""Changes come in swarms: let them settle before a cycle."""
PULSE_SECONDS = 15.0
"""Look again so often in any case: deadlines and quarantines pass without an event."""
IMPROVE_SECONDS = 10.0
"""While nobody waits, look so often whether one of those who run would be better off elsewhere."""
MOVE_SECONDS = 30.0
"""A job that asked for another place has so long to take it."""
TELLING_SECONDS = 0.2
"""Per waiting job, the seconds for which a reason that hangs on what is free stays as it was told:
otherwise each start and end would rewrite the status of the whole queue."""
_FLUID = frozenset({Reason.INSUFFICIENT_GPUS, Reason.DOMAIN_TOO_SMALL, Reason.WAITING_BEHIND})
"""Reasons that come and go with what others do."""


class Scheduler:
    """Runs cycles, and keeps offers until they are taken up."""

    def __init__(
        self,
        candidates: Callable[[], Sequence[Candidate]],
        world: Callable[[Mapping[str, Offer]], World],
        stored: Callable[[str], JobView | None],
        wake: Callable[[str], None],
        seconds: Callable[[float], None] = lambda _seconds: None,
        taken: Callable[[Offer], None] = lambda _offer: None,
    ):
        self._candidates = candidates
        self._world = world
        self._stored = stored
        self._wake = wake
        self._seconds = seconds
        self._taken = taken
        self._poked = asyncio.Event()
        self._offers: dict[str, Offer] = {}
        self._evictions: dict[str, Eviction] = {}
        self._promised: set[str] = set()
        self._claimed: set[str] = set()
        self._refusals: dict[str, Refusal] = {}
        self._told: dict[str, float] = {}
        self._hints: dict[str, Hint] = {}
        self._moving: dict[str, float] = {}
        self._looked: dict[str, float] = {}
        self._improved = -IMPROVE_SECONDS
        self.waiting = 0

    def poke(self) -> None:
        """Something changed that may matter to a waiting job."""
        self._poked.set()

    def verdict(self, uid: str) -> Verdict | None:
        """Return the newest verdict about a job."""
        decided = self._offers.get(uid) or self._evictions.get(uid)
        return decided or self._refusals.get(uid) or self._hints.get(uid)

    def claim(self, uid: str) -> None:
        """The job is about to write the offer down: from now on it cannot be taken back."""
        self._claimed.add(uid)

    def give_up(self, uid: str) -> None:
        """The write of a claimed offer has certainly failed."""
        self._claimed.discard(uid)
        self.poke()

    async def run(self) -> None:
        """Run a cycle whenever something changed, and now and then."""
        while True:
            try:
                async with asyncio.timeout(PULSE_SECONDS):
                    await self._poked.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(QUIET_SECONDS)
            self._poked.clear()
            try:
                started = time.perf_counter()
                await self.cycle()
                self._seconds(time.perf_counter() - started)
            except Exception:
                # One broken object must not stop the queue of everybody for good.
                log.exception("scheduler cycle failed")
                await asyncio.sleep(1.0)
                self.poke()

    async def cycle(self) -> None:
        """Decide about all waiting jobs as the copies show them now.

        The decision runs in a thread: with many jobs and nodes it takes longer than a lease or a
        probe may wait. What changes meanwhile is seen by the next cycle; nobody else makes offers.
        """
        queue = {candidate.uid: candidate for candidate in self._candidates()}
        self._settle(queue)
        self.waiting = len(queue)
        open_ = [c for uid, c in queue.items() if uid not in self._offers]
        if not open_:
            self._refusals.clear()
            await self._improve()
            return
        world = self._with_promises(self._world(self._offers), queue)
        decided = await asyncio.to_thread(decide, open_, world, frozenset(self._promised))
        self._take_in(decided)

    def _take_in(self, decided: Decided) -> None:
        before, self._refusals = self._refusals, {}
        now, patience = time.monotonic(), TELLING_SECONDS * len(decided.verdicts)
        for uid, verdict in decided.verdicts.items():
            if isinstance(verdict, Offer):
                self._offers[uid] = verdict
                self._wake(uid)
                continue
            old = before.get(uid)
            fluid = old is not None and {old.reason, verdict.reason} <= _FLUID
            same = old is not None and old.reason == verdict.reason
            if (same or fluid) and now - self._told.get(uid, 0.0) < patience:
                self._refusals[uid] = old or verdict
                continue
            self._refusals[uid] = verdict
            self._told[uid] = now
            if verdict != old:
                self._wake(uid)
        self._told = {uid: at for uid, at in self._told.items() if uid in self._refusals}
        self._evictions = self._still_due(decided)
        for uid, eviction in decided.evictions.items():
            self._evictions[uid] = eviction
            self._promised.add(eviction.by)
            self._wake(uid)

    def _still_due(self, decided: Decided) -> dict[str, Eviction]:
        """Return who has still to stop: nobody for a job whose room somebody else has just got.

        Where nobody got any, who is first in the line may merely have changed: it needs that room.
        """
        verdicts = decided.verdicts
        if not any(isinstance(verdict, Offer) for verdict in verdicts.values()):
            return self._evictions
        due = {
            uid
            for uid, verdict in verdicts.items()
            if isinstance(verdict, Refusal) and verdict.reason == Reason.PREEMPTING
        }
        found = {uid: each for uid, each in self._evictions.items() if each.by in due}
        if len(found) < len(self._evictions):
            self.poke()  # who counted on those nodes may want others stopped
        return found

    async def _improve(self) -> None:
        """Look for a better place for one job that runs: who asked first, else each in its turn."""
        if time.monotonic() - self._improved < IMPROVE_SECONDS:
            return
        self._improved = time.monotonic()
        world = self._world(self._offers)
        settled = {job.candidate.uid: job for job in world.sitting if job.settled}
        self._hints = {uid: self._hints[uid] for uid in self._hints if uid in settled}
        candidates = [job for uid, job in settled.items() if uid not in self._offers]
        if not candidates:
            return

        def turn(job: Sitting) -> tuple[bool, float]:
            return not job.moves, self._looked.get(job.candidate.uid, 0.0)

        job = min(candidates, key=turn)
        uid = job.candidate.uid
        self._looked = {u: at for u, at in self._looked.items() if u in settled}
        self._looked[uid] = time.monotonic()
        hint, offer = await asyncio.to_thread(better, job, world)
        if offer is not None and job.moves:
            self._offers[uid] = offer
            self._moving[uid] = time.monotonic() + MOVE_SECONDS
        changed, self._hints[uid] = self._hints.get(uid) != hint, hint
        if changed or job.moves:
            self._wake(uid)

    def _with_promises(self, world: World, queue: Mapping[str, Candidate]) -> World:
        """Add what is decided and not yet seen: who has an offer, and who is told to stop."""
        tenants = [
            replace(tenant, ends_at=world.now + SOON_SECONDS, preemptible=False)
            if tenant.uid in self._evictions
            else tenant
            for tenant in world.tenants
        ]
        for uid, offer in self._offers.items():
            if uid in queue:
                job = queue[uid]
                end = None if job.duration is None else world.now + job.duration
                held = Running(
                    uid,
                    job.namespace,
                    job.priority,
                    offer.nodes,
                    offer.resources,
                    end,
                    preemptible=False,
                )
                tenants.append(held)
        return replace(world, tenants=tuple(tenants))

    def _settle(self, queue: Mapping[str, Candidate]) -> None:
        """Drop offers that the copies show as taken up, and those nobody waits for any more."""
        for uid, offer in list(self._offers.items()):
            job = self._stored(uid)
            placement = (job.stored_placement if job else None) or {}
            visible = bool(placement) and placement.get("attempt", 0) >= offer.attempt
            moved_on = job is not None and job.attempt > offer.attempt
            moving = time.monotonic() < self._moving.get(uid, 0.0)
            idle = uid not in queue and uid not in self._claimed and not moving
            stale = uid in queue and queue[uid].attempt != offer.attempt
            if visible:
                self._taken(offer)
            if job is None or visible or moved_on or idle or (stale and uid not in self._claimed):
                del self._offers[uid]
                self._moving.pop(uid, None)
                self._claimed.discard(uid)
        self._promised = {uid for uid in self._promised if uid in queue and uid not in self._offers}
        for uid, eviction in list(self._evictions.items()):
            job = self._stored(uid)
            stopped = job is None or job.attempt > eviction.attempt
            if stopped or eviction.by not in self._promised:
                del self._evictions[uid]
