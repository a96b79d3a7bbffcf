"""Fit the constants of the step model to published runs: one set per GPU type.

The runs of a type, ordered by model and size, are assigned alternately to fitting and to testing.
Errors are absolute logarithms of the ratio: a factor of two counts the same in both directions, and
single outliers have limited weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log

from llmtrain_core.plan.constants import FALLBACK_TYPES, INITIAL, Constants, fitted_type_of
from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.time.published_runs import PublishedRun
from llmtrain_core.plan.time.step_time import step_time

BOUNDS: Mapping[str, tuple[float, float]] = {
    "product_efficiency": (0.3, 0.95),
    "float8_efficiency": (0.2, 0.9),
    "kernel_seconds": (0.0, 60e-6),
    "attention_efficiency": (0.2, 0.9),
    "tensor_exposed": (0.0, 1.0),
    "jitter": (0.0, 0.02),
}
"""Fitted constants and their bounds."""

FEW = 8
"""Fewer runs than this fit only the efficiency of the precisions they ran in; the rest is that of
the type that `constants.FALLBACK_TYPES` names."""


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A published run and its predicted step time."""

    run: PublishedRun
    predicted: float
    """Seconds of a step."""
    fitted: bool
    """Whether the constants were fitted to it."""

    @property
    def error(self) -> float:
        """Relative error of the predicted step time."""
        return self.predicted / self.run.seconds - 1


def split(runs: Sequence[PublishedRun]) -> tuple[list[PublishedRun], list[PublishedRun]]:
    """Return the runs to fit and the runs to test: alternately, by type, model and size."""
    ordered = sorted((run for run in runs if run.counted), key=_order)
    kinds: dict[str, list[PublishedRun]] = {}
    for run in ordered:
        kinds.setdefault(fitted_type_of(run.hardware), []).append(run)
    fit = [run for group in kinds.values() for run in group[::2]]
    test = [run for group in kinds.values() for run in group[1::2]]
    return fit, test


def _order(run: PublishedRun) -> tuple[object, ...]:
    return (run.hardware, run.setup.precision, run.source, run.name, run.gpus, run.seconds)


def fit(runs: Sequence[PublishedRun], start: Constants) -> Constants:
    """Return the constants that fit runs of one type best, by pattern searches from three starts.

    Deterministic: every round tries each constant up and down, and halves the stride when nothing
    helps. The starts differ in the efficiency of products, along which the cost has valleys.
    """
    names = _names(runs)
    starts = [start]
    if len(runs) >= FEW:
        starts += [replace(start, product_efficiency=value) for value in (0.6, 0.85)]
    found = [_search(runs, one, names) for one in starts]
    best = min(found, key=lambda constants: _cost(runs, constants))
    return replace(best, **{name: float(f"{getattr(best, name):.4g}") for name in BOUNDS})


def _names(runs: Sequence[PublishedRun]) -> list[str]:
    """Return the constants that these runs determine."""
    ran = {run.setup.precision for run in runs}
    names = {"bfloat16": "product_efficiency", "float8": "float8_efficiency"}
    efficiencies = [name for precision, name in names.items() if precision in ran]
    rest = [name for name in BOUNDS if name not in names.values()]
    return efficiencies + (rest if len(runs) >= FEW else [])


def _search(runs: Sequence[PublishedRun], best: Constants, names: Sequence[str]) -> Constants:
    cost, stride = _cost(runs, best), 0.25
    while stride > 0.004:
        improved = False
        for name in names:
            low, high = BOUNDS[name]
            for direction in (1, -1):
                value = getattr(best, name) + direction * stride * (high - low)
                candidate = replace(best, **{name: min(high, max(low, value))})
                found = _cost(runs, candidate)
                if found < cost - 1e-9:
                    best, cost, improved = candidate, found, True
        if not improved:
            stride /= 2
    return best


def predict(run: PublishedRun, constants: Constants) -> float:
    """Return the predicted seconds of a step."""
    return step_time(run.setup, CATALOGUE[run.hardware], constants).seconds


def _cost(runs: Sequence[PublishedRun], constants: Constants) -> float:
    return sum(abs(log(predict(run, constants) / run.seconds)) for run in runs) / len(runs)


def fit_all(runs: Sequence[PublishedRun]) -> dict[str, Constants]:
    """Return the constants of every type that runs are published for, fitted on half of them."""
    halves = split(runs)[0]
    kinds: dict[str, list[PublishedRun]] = {}
    for run in halves:
        kinds.setdefault(fitted_type_of(run.hardware), []).append(run)
    found: dict[str, Constants] = {}
    while len(found) < len(kinds):
        for kind, mine in kinds.items():
            parent = FALLBACK_TYPES.get(kind)
            if kind not in found and (parent is None or parent in found):
                found[kind] = fit(mine, found[parent] if parent else INITIAL)
    return found


def compare_with_published(
    runs: Sequence[PublishedRun], constants_of: Callable[[str], Constants]
) -> list[ComparedRun]:
    """Return every counted run with its prediction."""
    halves = split(runs)
    return [
        ComparedRun(run, predict(run, constants_of(run.hardware)), half is halves[0])
        for half in halves
        for run in half
    ]
