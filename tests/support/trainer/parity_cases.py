"""Layouts, schedules, shapes and precisions that must compute what one process computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from llmtrain_core.pipeline_schedules import (
    SCHEDULES,
    Schedule,
    equal_rounds,
    min_micro_batches,
)
from tests.support.covering import cover, pairs

BATCH = 8
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tiedEmbeddings": True},
    "gpt": {
        "kvHeads": 4,
        "positions": "learned",
        "norm": "layer",
        "activation": "gelu",
        "biases": "all",
    },
    "gpt3": {
        "kvHeads": 4,
        "positions": "learned",
        "norm": "layer",
        "activation": "gelu",
        "biases": "all",
        "tiedEmbeddings": True,
    },
    "qwen2": {"biases": "qkv"},
    "qwen3": {"qkNorm": True, "headDim": 16},
    "moe": {"experts": 4, "expertsPerToken": 2, "loadBalancingWeight": 0.05},
}
LONG = {
    "tp": "tensor",
    "cp": "context",
    "dp": "data",
    "rep": "replicate",
    "pp": "pipeline",
    "ep": "expert",
}


@dataclass(frozen=True)
class Case:
    """One layout of one model; degrees by short name."""

    degrees: tuple[tuple[str, int], ...]
    schedule: Schedule = "1F1B"
    recompute: str = "none"
    precision: str = "float64"
    shape: str = "llama"
    layers: int = 2

    def degree(self, name: str) -> int:
        return dict(self.degrees).get(name, 1)

    @property
    def ranks(self) -> int:
        return ranks_of(dict(self.degrees))

    def words(self) -> tuple[str, ...]:
        """Return what it is, column by column."""
        layout = "·".join(f"{name}{degree}" for name, degree in self.degrees) or "one process"
        schedule = self.schedule if self.degree("pp") > 1 else "-"
        return layout, schedule, self.recompute, self.shape, self.precision

    def __str__(self) -> str:
        return ", ".join(self.words())

    def choices(self) -> frozenset[object]:
        """Return every pair of choices of this case."""
        _, schedule, *_ = self.words()
        degrees = {name: self.degree(name) for name in LONG}
        others = {"recompute": self.recompute, "precision": self.precision, "shape": self.shape}
        return pairs({**degrees, "schedule": schedule, **others})

    def alone(self) -> Case:
        """Return what it is compared with."""
        return Case((), precision=self.precision, shape=self.shape, layers=self.layers)

    def micro_batch(self) -> int:
        """Return the largest micro-batch with which the schedule runs."""
        local = BATCH // (self.degree("dp") * self.degree("rep"))
        stages = self.degree("pp")
        return next(
            size
            for size in (2, 1)
            if local // size >= min_micro_batches(self.schedule, stages)
            and equal_rounds(self.schedule, stages, local // size)
        )


def read_layout(layout: str) -> dict[str, int]:
    """Return the degrees of a layout as it is printed, `pp2 dp2`, by short name."""
    return {word.rstrip("0123456789"): int(word[-1]) for word in layout.split()}


def ranks_of(degrees: Mapping[str, int]) -> int:
    """Return the number of ranks; those of a group of experts are data ranks."""
    return prod(degree for name, degree in degrees.items() if name != "ep")


def case(layout: str, schedule: Schedule = "1F1B", **others: str) -> Case:
    """Make a case from a layout as it is printed, `pp2 dp2`.

    It has two layers a pipeline rank; at least four where rounding shows.
    """
    degrees = read_layout(layout)
    rounds = others.get("precision", "float64") != "float64"
    layers = max(2 * degrees.get("pp", 1), 4 if rounds else 2)
    return Case(tuple(degrees.items()), schedule, layers=layers, **others)


GRID = "pp2 dp2 tp2"
CASES: list[Case] = [
    # several choices at once, so that few cases cover every pair of them
    case("", shape="tied", recompute="full", precision="bfloat16"),
    case("dp2", shape="gpt", recompute="selective"),
    case("cp2", shape="gpt", recompute="full"),
    case("rep2 cp2", recompute="full", precision="float32"),
    case("dp2 tp2", shape="gpt3", recompute="selective", precision="float32"),
    case("pp2", shape="gpt", recompute="selective"),
    *(
        case("pp4", schedule, shape="tied")
        for schedule in ("Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "DualPipeV")
    ),
    case("pp2 dp2", "GPipe", shape="tied", recompute="selective"),
    case("pp2 dp2 ep2", "ZBVZeroBubble", shape="moe", recompute="full", precision="bfloat16"),
    case("pp2 cp2", recompute="full", precision="bfloat16"),
    case("pp2 cp2", "LoopedBFS", recompute="full"),
    case("pp2 cp2", "ZBVZeroBubble", shape="moe", recompute="full", precision="float32"),
    *(
        case("pp2 cp2 ep2", schedule, shape="moe", recompute="selective")
        for schedule in ("InterleavedZeroBubble", "DualPipeV")
    ),
    case("pp2 tp2", "Interleaved1F1B", shape="gpt3", recompute="full"),
    case("pp2 tp2", "DualPipeV", shape="gpt"),
    case(
        "pp2 rep2 tp2",
        "ZBVZeroBubble",
        shape="tied",
        recompute="selective",
        precision="bfloat16",
    ),
    case("pp2 dp2 tp2", "InterleavedZeroBubble", recompute="full"),
    case("pp2 dp2 tp2 ep2", "LoopedBFS", shape="moe", recompute="selective"),
    case("pp2 cp2 tp2 ep2", "GPipe", shape="moe", recompute="full"),
    # pipelines
    *(case(f"pp2 {other}", schedule) for schedule in SCHEDULES for other in ("dp2", "tp2")),
    *(case(GRID, s) for s in ("1F1B", "Interleaved1F1B", "ZBVZeroBubble", "DualPipeV")),
    case("dp2"),
    case("tp2"),
    case("dp4 tp2"),
    case("tp2", shape="tied"),
    *(case("pp4", schedule) for schedule in SCHEDULES),
    # copies of the sharded model
    *(case(layout) for layout in ("rep2", "rep2 dp2", "rep2 tp2", "rep2 dp2 tp2", "pp2 rep2 tp2")),
    *(case("pp2 rep2", schedule) for schedule in ("1F1B", "ZBVZeroBubble")),
    # sequences shared by ranks
    *(case(layout) for layout in ("cp2", "cp4", "cp2 tp2", "dp2 cp2", "rep2 cp2", "pp2 cp2 tp2")),
    *(case("pp2 cp2", schedule) for schedule in SCHEDULES),
    # activation checkpointing
    *(
        case(layout, schedule, recompute=kind)
        for kind in ("selective", "full")
        for layout, schedule in (
            *(
                (layout, "1F1B")
                for layout in (
                    "",
                    "dp2",
                    "tp2",
                    "cp2",
                    "rep2",
                    "rep2 tp2",
                    "cp2 tp2",
                    "pp2 rep2",
                )
            ),
            *((f"pp2 {other}", schedule) for schedule in SCHEDULES for other in ("dp2", "tp2")),
            *(("pp2 cp2", s) for s in ("1F1B", "Interleaved1F1B", "ZBVZeroBubble")),
            *((GRID, s) for s in ("1F1B", "Interleaved1F1B", "ZBVZeroBubble", "DualPipeV")),
        )
    ),
    *(
        case("tp2", recompute=kind, **other)
        for kind in ("selective", "full")
        for other in (
            *({"shape": shape} for shape in ("gpt", "gpt3", "qwen2", "qwen3", "tied")),
            {"precision": "float32"},
            {"precision": "bfloat16"},
        )
    ),
    # other shapes
    *(case(layout, shape="gpt") for layout in ("dp2", "tp2", "cp2 tp2", "pp2 tp2")),
    case("pp2 dp2", "DualPipeV", shape="gpt"),
    case("tp2", shape="qwen2"),
    case("tp2", shape="qwen3"),
    case("cp2 tp2", shape="qwen3"),
    *(case("tp2", shape="gpt3", precision=p) for p in ("float64", "float32", "bfloat16")),
    # mixture of experts
    *(
        case(layout, shape="moe")
        for layout in (
            "dp2",
            "dp2 ep2",
            "tp2",
            "dp2 ep2 tp2",
            "dp4 ep2",
            "dp4 ep4",
            "dp4 ep2 tp2",
            "rep2 dp2 ep2",
            "rep2 dp2 ep2 tp2",
            "cp2",
            "cp2 ep2",
            "dp2 cp2 ep4",
            "cp2 tp2 ep2",
        )
    ),
    *(case("pp2 dp2 ep2", schedule, shape="moe") for schedule in SCHEDULES),
    *(case("pp2 tp2", s, shape="moe") for s in ("1F1B", "Interleaved1F1B", "ZBVZeroBubble")),
    *(case(f"{GRID} ep2", s, shape="moe") for s in ("1F1B", "DualPipeV")),
    *(
        case(layout, schedule, recompute=kind, shape="moe")
        for kind in ("selective", "full")
        for layout, schedule in (
            ("dp2 ep2", "1F1B"),
            ("pp2 dp2 ep2", "ZBVZeroBubble"),
            ("tp2", "1F1B"),
        )
    ),
    *(
        case(layout, precision=precision, shape="moe")
        for precision in ("float32", "bfloat16")
        for layout in ("dp2 ep2", "tp2", "pp2 dp2 ep2")
    ),
    # the first and the last stage share a matrix
    *(case("pp2 dp2", s, shape="tied") for s in SCHEDULES),
    *(case("pp2 tp2", s, shape="tied") for s in ("1F1B", "DualPipeV")),
    case("pp2 tp2", shape="gpt3"),
    case(GRID, "Interleaved1F1B", shape="gpt3"),
    case("pp4", shape="tied"),
    case("pp2 rep2 tp2", shape="tied"),
    case("pp2 dp2", shape="tied", precision="bfloat16"),
    # other precisions
    *(
        case(layout, schedule, precision=precision)
        for precision in ("float32", "bfloat16")
        for layout, schedule in (
            (GRID, "1F1B"),
            ("pp2 dp2", "ZBVZeroBubble"),
            ("cp2 tp2", "1F1B"),
            ("rep2 tp2", "1F1B"),
        )
    ),
]
COVERING = set(cover(CASES, Case.choices, lambda case: case.ranks))
"""The cases of `make test`."""
