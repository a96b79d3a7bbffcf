"""Traffic of the groups of a job in one step, as used by the placement cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from llmtrain_core.layout import DIMENSION_LABELS, Dimension, Layout

GB = 10**9


@dataclass(frozen=True, slots=True)
class GroupTraffic:
    """Traffic of one kind of group."""

    nbytes: int
    """Bytes on one edge of the group's ring (pipeline: chain), in one direction and step."""
    exposed: float = 1.0
    """Share of its time that no computation hides."""


@dataclass(frozen=True, slots=True)
class TrafficVolumes:
    """Traffic of all kinds of groups; a kind that is absent has none.

    Rings (tensor, context, data, replicate): every rank sends `nbytes` to the next rank of its
    group, the last one to the first. Pipeline: `nbytes` over every boundary, forward and back.
    """

    by_kind: Mapping[Dimension, GroupTraffic] = field(default_factory=dict)
    wrap_bytes: int = 0
    """Bytes of a pipeline between its last and its first rank, in each direction: looped schedules
    with several chunks per rank, and an embedding that both share; else 0, as for V shapes."""
    nominal: bool = False
    """Whether these are typical values, because the model is not known."""


NOMINAL_PAYLOADS: Mapping[Dimension, GroupTraffic] = MappingProxyType(
    {
        "tensor": GroupTraffic(200 * GB, 1.0),
        "context": GroupTraffic(20 * GB, 1.0),
        "data": GroupTraffic(10 * GB, 0.5),
        "replicate": GroupTraffic(10 * GB, 0.5),
        "pipeline": GroupTraffic(600 * 10**6, 1.0),
    }
)
"""Typical bytes per GPU, step and direction, for a third-party trainer.

Those of Nemotron-4 340B with tensor 8 and pipeline 8 at 16 micro-batches of 4,096 tokens: 203 GB
tensor, 10.6 to 20.6 GB data, 0.6 GB per pipeline boundary. Only their ratios decide. Context: a
tenth of tensor (keys and values of grouped heads); data traffic: half of it hidden.
"""

NOMINAL_STEP_SECONDS = 5.0
"""Typical time of a step for a third-party trainer.

That of the run above on H100: 6 x 340e9 FLOPs for each of 1,024 tokens per GPU, at 42 % of the
peak.
"""


def nominal_volumes(layout: Layout) -> TrafficVolumes:
    """Return typical values for a layout: (n - 1) / n of the payload on every ring edge."""
    found: dict[Dimension, GroupTraffic] = {}
    for kind, payload in NOMINAL_PAYLOADS.items():
        ranks = layout.group(DIMENSION_LABELS[kind]).size
        if ranks > 1:
            share = 1.0 if kind == "pipeline" else (ranks - 1) / ranks
            found[kind] = GroupTraffic(round(payload.nbytes * share), payload.exposed)
    return TrafficVolumes(found, nominal=True)
