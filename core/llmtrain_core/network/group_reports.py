"""What a job reports of its groups: how much slower than usual the transfers of each are.

The trainer writes a report, and the operator reads it. A trainer can write anything. So a report
names groups only, which the placement of the operator maps to links, and what is not a group of the
job or not a number is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import exp, log
from typing import Any

from llmtrain_core.api.untrusted import is_count, is_finite
from llmtrain_core.layout import GROUP_LABELS
from llmtrain_core.network.links import MAX_INSIDE, MAX_REPORTED, Group, GroupKey
from llmtrain_core.network.localise import Observation
from llmtrain_core.network.transfer_times import LEAST_ERROR, JobTimes

MAX_RATIO = 100.0
"""A transfer that is slower, or faster, than usual by more counts as this."""


@dataclass(frozen=True, slots=True)
class GroupSlowdown:
    """How much slower than usual the transfers of one group are."""

    group: GroupKey
    log_ratio: float
    """Natural logarithm of the transfer time over the usual one."""
    error: float
    """Standard error of `log_ratio`."""


@dataclass(frozen=True, slots=True)
class SlowdownReport:
    """The slowdowns of the groups of a job after a block of samples."""

    block: int
    """Number of the block, which is another one in each report with new samples."""
    groups: tuple[GroupSlowdown, ...]

    def to_wire(self) -> dict[str, Any]:
        """Return the report as JSON: a list of numbers for each label of groups."""
        ordered = sorted(self.groups, key=lambda each: each.group)
        return {
            "block": self.block,
            "groups": [
                {
                    "group": label,
                    "ranks": [each.group[1] for each in found],
                    "ratio": [_short(exp(each.log_ratio)) for each in found],
                    "error": [_short(each.error) for each in found],
                }
                for label, members in groupby(ordered, key=lambda each: each.group[0])
                if (found := list(members))
            ],
        }

    @classmethod
    def from_wire(cls, value: Any, groups: Collection[GroupKey]) -> SlowdownReport | None:
        """Return what is valid of the JSON of a job with these groups; None without a block."""
        block = block_of_report(value)
        if block is None:
            return None
        entries = value.get("groups")
        found: dict[GroupKey, GroupSlowdown] = {}
        for entry in entries[: len(GROUP_LABELS)] if isinstance(entries, list) else ():
            for each in _read_label(entry):
                if each.group in groups:
                    found[each.group] = each
        return cls(block, tuple(found.values()))


def slowdowns(times: JobTimes) -> tuple[GroupSlowdown, ...]:
    """Return the slowdowns of all groups with a usual time."""
    groups = {name: history.group for (_, name), history in times.histories.items()}
    return tuple(
        GroupSlowdown(
            (groups[each.group].label, groups[each.group].first_rank), each.log_ratio, each.error
        )
        for each in times.observations()
    )


def block_of_report(value: Any) -> int | None:
    """Return the number of the block of a report; None if it is no report."""
    block = value.get("block") if isinstance(value, dict) else None
    return block if is_count(block) else None


def observations(
    job: str, report: SlowdownReport, groups: Mapping[GroupKey, Group]
) -> tuple[Observation, ...]:
    """Return the slowdowns of a job, whose name is unique, with the links that its groups cross."""
    return tuple(
        Observation(
            f"{job}/{label}/{rank}",
            job,
            label,
            groups[label, rank].links,
            each.log_ratio,
            each.error,
        )
        for each in report.groups
        for label, rank in (each.group,)
    )


def _read_label(entry: Any) -> Iterable[GroupSlowdown]:
    """Yield the valid slowdowns of one label."""
    if not isinstance(entry, dict) or entry.get("group") not in GROUP_LABELS:
        return
    ranks, ratios, errors = (entry.get(key) for key in ("ranks", "ratio", "error"))
    if not (isinstance(ranks, list) and isinstance(ratios, list) and isinstance(errors, list)):
        return
    if not len(ranks) == len(ratios) == len(errors) <= MAX_REPORTED + MAX_INSIDE:
        return
    for rank, ratio, error in zip(ranks, ratios, errors, strict=True):
        if is_count(rank) and _is_positive(ratio) and _is_positive(error):
            bounded = min(MAX_RATIO, max(1 / MAX_RATIO, ratio))
            yield GroupSlowdown(
                (entry["group"], rank), log(bounded), min(MAX_RATIO, max(LEAST_ERROR, error))
            )


def _is_positive(value: Any) -> bool:
    return is_finite(value) and bool(value > 0)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
