"""Find the slow links that explain which groups of ranks are slow.

Input are the groups of one or more jobs: the links that each crosses, and how much slower than
usual its transfers are. The result is the least set of slow links that explains the slow groups,
with the factor of each and a confidence.

This is the sparse inverse problem of Boolean network tomography (Duffield, "Network tomography of
binary network performance characteristics", IEEE Trans. Inf. Theory 2006: the smallest consistent
failure set). 007 (Arzani et al., NSDI 2018) lets slow flows vote for their links and takes one link
after the other, deTector (Peng et al., USENIX ATC 2017) takes the link with the highest share of
lossy paths, and NetBouncer (Tan et al., NSDI 2019) fits a rate per link with a penalty for links
that are neither good nor bad. Flock (Harsh et al., 2023, arXiv:2305.03348) compares whole sets by
their likelihood in a noisy model, with a greedy search, and reports fewer errors than these. So
does this module, with a model of its own for slowdowns of collectives:

- A cause is a link, or a job of which all groups are slow: more work in a step or slow hosts is no
  slow link. The prior probability of each is small, which keeps the set small.
- A group is as slow as the slowest link that it crosses: a ring moves at the rate of its slowest
  edge. Without a slow link its ratio is one but for noise, and in some cases anything. A group that
  is faster than usual, because a slow one leaves bandwidth to it, counts as one that is as usual.
- Groups of one kind (the same job and label) use a link at the same time and share its bandwidth,
  so they slow down alike. Groups of another kind need less of the link and may not notice. So each
  kind has a factor of its own, or none.

Links that the same groups cross cannot be distinguished: they are one answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from math import exp, log, pi, sqrt
from statistics import median

from llmtrain_core.network.links import LinkPath

SUSPECT_RATIO = 1.2
"""Least slowdown that is reported: that of Greyhound (Wu et al., USENIX ATC 2025)."""
MAX_CAUSES = 8
MAX_ALTERNATIVES = 4

_LINK_PRIOR, _JOB_PRIOR = log(1e-3), log(5e-3)
_LEAST_GAIN = 0.0
"""Least logarithm of the odds for a cause."""
_LEAST_ODDS_TO_JOB = 3.0
"""The same for a link against the jobs whose groups it slows down."""
_LEAST_THETA = log(1.1)
_DRIFT = 0.04
"""Standard deviation of log ratios beyond the noise of the samples."""
_SPREAD = 0.15
"""Relative standard deviation of log slowdowns over the groups of a kind."""
_OUTLIERS, _BROAD = 1e-4, 0.25
"""Share of groups whose ratio has other reasons, and the density of its logarithm."""
_UNNOTICED = 0.02
"""Share of the groups of a kind that do not notice the slow link, unlike the rest."""
_SPARED = 0.002
"""Share of the groups of a slow job that are as fast as usual."""
_KIND_UNNOTICED = _KIND_NOTICED = log(0.5)
_LEAST_KIND_GAIN = 3.6
"""Logarithm of the odds without which a kind has not noticed the slow link."""


@dataclass(frozen=True, slots=True)
class Observation:
    """How much slower than usual the transfers of one group are."""

    group: str
    """Its name, unique over all jobs."""
    job: str
    label: str
    """Groups of one job and label are of one kind."""
    links: frozenset[LinkPath]
    """Those that it crosses; none for a group inside a node."""
    log_ratio: float
    """Natural logarithm of the transfer time over the usual one."""
    error: float
    """Standard error of `log_ratio`."""


@dataclass(frozen=True, slots=True)
class RankedLinks:
    """Links that explain the same groups less well."""

    links: tuple[LinkPath, ...]
    confidence: float


@dataclass(frozen=True, slots=True)
class SlowLink:
    """A slow link, or several of which one is slow."""

    links: tuple[LinkPath, ...]
    """Links that the same groups cross, of the labels of groups that slow down."""
    factor: float
    """Time of the transfers over the usual one, of the kind of groups that slows down most."""
    confidence: float
    """Probability of these links against every other single cause and against none."""
    slow_groups: tuple[str, ...]
    other_groups: tuple[str, ...]
    """Groups that cross these links and are not slower."""
    alternatives: tuple[RankedLinks, ...]
    """The next best answers, best first."""


@dataclass(frozen=True, slots=True)
class Localisation:
    """What explains the slow groups."""

    slow_links: tuple[SlowLink, ...] = ()
    """In order of the evidence, strongest first."""
    slow_jobs: Mapping[str, float] = field(default_factory=dict)
    """Factor of the jobs of which all groups are slow. A link that all of them cross may be the
    reason, too: it is not named."""


@dataclass(frozen=True, slots=True)
class _Cause:
    """Links that the same groups cross, or a job."""

    links: tuple[LinkPath, ...]
    job: str
    kinds: tuple[tuple[int, ...], ...]
    """Indices of its groups, by kind."""


@dataclass(frozen=True, slots=True)
class _Fit:
    """A cause with the log slowdown of each of its kinds; zero for one that does not notice."""

    gain: float
    thetas: tuple[float, ...]


def localise(observations: Sequence[Observation]) -> Localisation:
    """Return the least set of slow links that explains the slow groups."""
    model = _Model(observations)
    if not model.suspects:
        return Localisation()
    chosen = _choose(model)
    slow_links: list[tuple[float, SlowLink]] = []
    slow_jobs: dict[str, float] = {}
    for cause in chosen:
        rest = model.explained_by(other for other in chosen if other is not cause)
        fit = model.fit(cause, rest)
        factor = exp(max(fit.thetas))
        if factor < SUSPECT_RATIO or fit.gain < _LEAST_GAIN:
            continue
        if not cause.job and fit.gain < model.best_job_gain(rest) + _LEAST_ODDS_TO_JOB:
            continue
        if cause.job:
            slow_jobs[cause.job] = factor
        else:
            slow_links.append((fit.gain, _slow_link(model, cause, fit, rest)))
    slow_links.sort(key=lambda item: (-item[0], item[1].links))
    return Localisation(tuple(link for _, link in slow_links), slow_jobs)


class _Model:
    """The groups, the causes, and the likelihood of the observations."""

    def __init__(self, observations: Sequence[Observation]):
        self.names = [each.group for each in observations]
        self._labels = [each.label for each in observations]
        self.log_ratios = [max(0.0, each.log_ratio) for each in observations]
        self._variances = [each.error**2 + _DRIFT**2 for each in observations]
        self._usual = [
            (1 - _OUTLIERS) * _normal(value, variance) + _OUTLIERS * _BROAD
            for value, variance in zip(self.log_ratios, self._variances, strict=True)
        ]
        self.suspects = {
            index
            for index, (value, variance) in enumerate(
                zip(self.log_ratios, self._variances, strict=True)
            )
            if value > max(_LEAST_THETA, 2 * sqrt(variance))
        }
        self.causes = _causes(observations, self.suspects) if self.suspects else []

    def explained_by(self, causes: Iterable[_Cause]) -> list[float]:
        """Return the log slowdown of every group that some causes predict, one after the other."""
        thetas = [0.0] * len(self.names)
        for cause in causes:
            fit = self.fit(cause, thetas)
            for members, theta in zip(cause.kinds, fit.thetas, strict=True):
                for index in members:
                    thetas[index] = max(thetas[index], theta)
        return thetas

    def best_job_gain(self, before: Sequence[float]) -> float:
        """Return the gain of the best cause that is a job."""
        return max((self.fit(cause, before).gain for cause in self.causes if cause.job), default=0)

    def alike(self, cause: _Cause, fit: _Fit) -> list[_Cause]:
        """Return the links that the same groups cross, of the labels of groups that notice it."""
        noticed = {
            self._labels[kind[0]]
            for kind, theta in zip(cause.kinds, fit.thetas, strict=True)
            if theta > 0
        }

        def compared(one: _Cause) -> set[int]:
            kinds = (kind for kind in one.kinds if self._labels[kind[0]] in noticed)
            return {index for kind in kinds for index in kind}

        members = compared(cause)
        return [
            other
            for other in self.causes
            if other is cause or (other.links and compared(other) == members)
        ]

    def fit(self, cause: _Cause, before: Sequence[float]) -> _Fit:
        """Return what a cause adds to the log probability of all, with the best slowdowns."""
        if cause.job:
            return self._fit_job(cause, before)
        gain, thetas = _LINK_PRIOR, []
        for members in cause.kinds:
            found = self._fit_kind(members, before)
            if found is None or found[0] < _LEAST_KIND_GAIN:
                gain += _KIND_UNNOTICED
                thetas.append(0.0)
            else:
                gain += _KIND_NOTICED + found[0]
                thetas.append(found[1])
        return _Fit(gain, tuple(thetas))

    def _fit_job(self, cause: _Cause, before: Sequence[float]) -> _Fit:
        """Return the fit of a job: all kinds are slow, each at least half as much as the slowest.

        Noise may hide the slowdown of a kind of few groups.
        """
        medians = [self._median(members, before) for members in cause.kinds]
        least = max(_LEAST_THETA, max(medians) / 2)
        thetas = tuple(max(least, each) for each in medians)
        gains = map(self._gain, cause.kinds, repeat(before), thetas, repeat(_SPARED))
        return _Fit(_JOB_PRIOR + sum(gains) + len(thetas) * log(_BROAD), thetas)

    def _median(self, members: Sequence[int], before: Sequence[float]) -> float:
        """Return the median log ratio of the groups that other causes do not explain."""
        free = [self.log_ratios[index] for index in members if self._is_free(index, before)]
        return median(free) if free else 0.0

    def _fit_kind(
        self, members: Sequence[int], before: Sequence[float]
    ) -> tuple[float, float] | None:
        """Return the gain and the log slowdown if a kind of groups notices; None if it does not."""
        theta = self._median(members, before)
        if theta < _LEAST_THETA:
            return None
        return log(_BROAD) + self._gain(members, before, theta), theta

    def _gain(
        self,
        members: Sequence[int],
        before: Sequence[float],
        theta: float,
        unnoticed: float = _UNNOTICED,
    ) -> float:
        return sum(
            log(self._density(index, theta, unnoticed) / self._density(index, before[index]))
            for index in members
            if theta > before[index]
        )

    def _is_free(self, index: int, before: Sequence[float]) -> bool:
        """Return True if other causes do not explain all of a group's slowdown."""
        if before[index] < _LEAST_THETA:
            return True
        error = sqrt(self._variances[index] + (_SPREAD * before[index]) ** 2)
        return self.log_ratios[index] > before[index] + 2 * error

    def _density(self, index: int, theta: float, unnoticed: float = _UNNOTICED) -> float:
        """Return the density of a group's log ratio at a log slowdown."""
        if theta == 0.0:
            return self._usual[index]
        variance = self._variances[index] + (_SPREAD * theta) ** 2
        noticed = (1 - _OUTLIERS) * _normal(self.log_ratios[index] - theta, variance)
        return (1 - unnoticed) * (noticed + _OUTLIERS * _BROAD) + unnoticed * self._usual[index]


def _causes(observations: Sequence[Observation], suspects: set[int]) -> list[_Cause]:
    """Return the causes of which a suspect is a member, in a fixed order."""
    by_link: dict[LinkPath, list[int]] = {}
    by_job: dict[str, list[int]] = {}
    for index, each in enumerate(observations):
        by_job.setdefault(each.job, []).append(index)
        for link in each.links:
            by_link.setdefault(link, []).append(index)
    classes: dict[tuple[int, ...], list[LinkPath]] = {}
    for link, members in by_link.items():
        classes.setdefault(tuple(members), []).append(link)
    found = [
        _Cause(tuple(sorted(links)), "", _by_kind(observations, members))
        for members, links in classes.items()
        if not suspects.isdisjoint(members)
    ]
    jobs = [
        _Cause((), job, _by_kind(observations, members))
        for job, members in by_job.items()
        if not suspects.isdisjoint(members)
    ]
    return sorted(found, key=lambda cause: cause.links) + sorted(jobs, key=lambda c: c.job)


def _by_kind(
    observations: Sequence[Observation], members: Iterable[int]
) -> tuple[tuple[int, ...], ...]:
    kinds: dict[tuple[str, str], list[int]] = {}
    for index in members:
        kinds.setdefault((observations[index].job, observations[index].label), []).append(index)
    return tuple(map(tuple, kinds.values()))


def _choose(model: _Model) -> list[_Cause]:
    """Return the best causes: add the best one, then exchange each, until nothing improves."""
    chosen: list[_Cause] = []
    while len(chosen) < MAX_CAUSES:
        best = _best(model, chosen)
        if best is None:
            break
        chosen.append(best)
        for cause in tuple(chosen[:-1]):
            chosen.remove(cause)
            again = _best(model, chosen)
            if again is not None:
                chosen.append(again)
    return chosen


def _best(model: _Model, chosen: Sequence[_Cause]) -> _Cause | None:
    """Return the cause that adds most to some others; None if none adds enough."""
    before = model.explained_by(chosen)
    best, most = None, _LEAST_GAIN
    for cause in model.causes:
        gain = model.fit(cause, before).gain
        if gain > most:
            best, most = cause, gain
    return best


def _slow_link(model: _Model, cause: _Cause, fit: _Fit, rest: Sequence[float]) -> SlowLink:
    fits = [(other, model.fit(other, rest)) for other in model.causes]
    most = max(0.0, *(found.gain for _, found in fits))
    weights = {other: exp(found.gain - most) for other, found in fits}
    total = exp(-most) + sum(weights.values())
    answers: list[RankedLinks] = []
    named: set[LinkPath] = set()
    ranked = sorted(fits, key=lambda item: (item[0] is not cause, -item[1].gain))
    for other, found in ranked:
        if other.job or not named.isdisjoint(other.links):
            continue
        alike = [each for each in model.alike(other, found) if named.isdisjoint(each.links)]
        links = sorted(link for each in alike for link in each.links)
        named.update(links)
        answers.append(RankedLinks(tuple(links), sum(weights[each] for each in alike) / total))
        if len(answers) > MAX_ALTERNATIVES:
            break
    slow: list[str] = []
    usual: list[str] = []
    for members, theta in zip(cause.kinds, fit.thetas, strict=True):
        for index in members:
            is_slow = theta > 0 and 2 * model.log_ratios[index] > theta
            (slow if is_slow else usual).append(model.names[index])
    return SlowLink(
        answers[0].links,
        exp(max(fit.thetas)),
        answers[0].confidence,
        tuple(slow),
        tuple(usual),
        tuple(answers[1:]),
    )


def _normal(distance: float, variance: float) -> float:
    """Return the density of a normal distribution."""
    return exp(-(distance**2) / (2 * variance)) / sqrt(2 * pi * variance)
