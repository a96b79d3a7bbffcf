"""Which slow links count for whom, from when and until when.

A trainer can say anything about its times. So what the jobs of a namespace show counts for the
placements of this namespace. For all namespaces count the links that two of them name, with the
lower of their factors. A job speaks only of links that its stored placement crosses, and it moves
no running job: a slow uplink counts as partly used, and a slow node is used last.

A link is named from the second decision in a row that finds it slow. It is no longer named after
three decisions in a row that do not, although a group crosses it, or after an hour without any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmtrain_core.network.links import LinkPath
from llmtrain_core.network.localise import Localisation, Observation, SlowLink, localise
from llmtrain_core.topology.inventory import Snapshot

RAISE_AFTER = 2
CLEAR_AFTER = 3
EXPIRE_SECONDS = 3600.0
MIN_NAMESPACES = 2
MAX_ALIKE = 8
"""An answer of more links, of which one is slow, is shown and changes no placement."""
MAX_CLAIMS = 32
"""Claims of a namespace that are kept, newest first."""
MAX_NAMED = 64


@dataclass(frozen=True, slots=True)
class Claim:
    """What the jobs of one namespace show about a link, or several of which one is slow."""

    found: SlowLink
    """As the last decision found it."""
    since: float
    """When it was first found, in seconds since the epoch."""
    last: float
    """When it was last found."""
    times: int = 1
    """Decisions that found it."""
    missed: int = 0
    """Decisions in a row since then that did not, although a group crosses it."""
    jobs: frozenset[str] = frozenset()
    """Jobs that it has slowed down since."""

    def holds(self, now: float) -> bool:
        """Return True if the links are named."""
        return self.times >= RAISE_AFTER and now - self.last <= EXPIRE_SECONDS


def next_claims(
    claims: Iterable[Claim], decision: Localisation, crossed: Collection[LinkPath], now: float
) -> tuple[Claim, ...]:
    """Return the claims of a namespace after a decision about all of its jobs.

    `crossed` are the links that the measured groups cross. A decision needs a new block of samples.
    """
    earlier = list(claims)
    found: list[Claim] = []
    for slow in decision.slow_links:
        same = next((c for c in earlier if not set(c.found.links).isdisjoint(slow.links)), None)
        if same is None:
            found.append(Claim(slow, now, now))
        else:
            earlier.remove(same)
            found.append(replace(same, found=slow, last=now, times=same.times + 1, missed=0))
    for claim in earlier:
        if now - claim.last > EXPIRE_SECONDS:
            continue
        if set(crossed).isdisjoint(claim.found.links):
            found.append(claim)
        elif claim.times >= RAISE_AFTER and claim.missed + 1 < CLEAR_AFTER:
            found.append(replace(claim, missed=claim.missed + 1))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class JobEvidence:
    """The groups of one job, as it has last reported them."""

    observations: tuple[Observation, ...]
    fresh: bool = True
    """Whether it has reported a new block of samples since the last decision."""


def decide_claims(
    claims: Iterable[Claim], jobs: Sequence[JobEvidence], now: float
) -> tuple[Claim, ...]:
    """Explain the groups of all jobs of a namespace, and return its claims after that.

    What jobs have reported before helps to explain the new blocks. It names no link again, and
    clears none.
    """
    every = [each for job in jobs for each in job.observations]
    new = {each.group: each.links for job in jobs if job.fresh for each in job.observations}
    crossed = {link for links in new.values() for link in links}
    shown: list[SlowLink] = []
    decision = localise(every)
    for slow in decision.slow_links:
        if new.keys().isdisjoint(slow.slow_groups):
            crossed.difference_update(slow.links)
        else:
            shown.append(slow)
    after = next_claims(claims, replace(decision, slow_links=tuple(shown)), crossed, now)
    job_of = {each.group: each.job for each in every}
    newest = sorted(after, key=lambda claim: -claim.last)[:MAX_CLAIMS]
    return tuple(
        replace(
            claim,
            jobs=claim.jobs | {job_of[name] for name in claim.found.slow_groups if name in job_of},
        )
        for claim in newest
    )


def claim_of_job(claims: Iterable[Claim], job: str, now: float) -> Claim | None:
    """Return the claim about the named link that slows a job down most; None without one."""
    named = [claim for claim in claims if job in claim.jobs and claim.holds(now)]
    return max(named, key=lambda claim: claim.found.factor, default=None)


@dataclass(frozen=True, slots=True)
class SlowLinks:
    """The factors of the slow links, for each namespace."""

    for_all: Mapping[LinkPath, float] = field(default_factory=dict)
    """What holds for namespaces whose jobs show nothing."""
    by_namespace: Mapping[str, Mapping[LinkPath, float]] = field(default_factory=dict)
    """What holds for the others."""

    def of(self, namespace: str) -> Mapping[LinkPath, float]:
        """Return what holds for a namespace."""
        return self.by_namespace.get(namespace, self.for_all)

    def named(self) -> dict[LinkPath, float]:
        """Return all named links: the factor for all, else the highest of any namespace.

        Beyond `MAX_NAMED` links, those with the highest factors.
        """
        found: dict[LinkPath, float] = {}
        for factors in self.by_namespace.values():
            for link, factor in factors.items():
                found[link] = self.for_all.get(link, max(factor, found.get(link, 1.0)))
        ordered = sorted(found, key=lambda link: (-found[link], link))
        return {link: found[link] for link in ordered[:MAX_NAMED]}


def slow_links(claims: Mapping[str, Sequence[Claim]], now: float) -> SlowLinks:
    """Return the slow links that follow from the claims of each namespace."""
    own: dict[str, dict[LinkPath, float]] = {}
    for namespace, stated in claims.items():
        factors: dict[LinkPath, float] = {}
        for claim in stated:
            if claim.holds(now) and len(claim.found.links) <= MAX_ALIKE:
                for link in claim.found.links:
                    factors[link] = max(factors.get(link, 1.0), claim.found.factor)
        if factors:
            own[namespace] = factors
    by_link: dict[LinkPath, list[float]] = {}
    for factors in own.values():
        for link, factor in factors.items():
            by_link.setdefault(link, []).append(factor)
    for_all = {
        link: sorted(factors)[-MIN_NAMESPACES]
        for link, factors in by_link.items()
        if len(factors) >= MIN_NAMESPACES
    }
    return SlowLinks(for_all, {name: {**for_all, **factors} for name, factors in own.items()})


def with_slow_links(fabric: Snapshot, slow: Mapping[LinkPath, float]) -> Snapshot:
    """Return a fabric whose slow uplinks have less to give: 1 / factor of what others leave.

    Placement takes an uplink as used to nine tenths at most.
    """
    uplinks = dict(fabric.uplinks)
    for link, factor in slow.items():
        if len(link) < len(fabric.levels):
            uplinks[link] = 1 - max(0.0, 1 - uplinks.get(link, 0.0)) / factor
    return replace(fabric, uplinks=uplinks) if slow else fabric


def slow_nodes(fabric: Snapshot, slow: Mapping[LinkPath, float]) -> frozenset[str]:
    """Return the names of the nodes that are to be used last."""
    depth = len(fabric.levels)
    return frozenset(link[depth - 1] for link in slow if len(link) >= depth)
