"""Copies of a sharded model: HSDP with the slow dimension in our hands.

FSDP shards over the data ranks only and calls a hook with every flat, reduce-scattered shard of
gradients, once per unit and optimizer step. Summing it over the copies there gives the same result
as FSDP on two dimensions, composes with tensor and pipeline parallelism, and is the one place where
the traffic between copies can be changed. Or copies train apart and meet every few steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.parallel.model_parts import ModelParts
from llmtrain_trainer.parallel.replicate.all_reduce import Sum
from llmtrain_trainer.parallel.replicate.choose import choose_sum
from llmtrain_trainer.parallel.replicate.diloco import OuterUpdates


class Copies(Protocol):
    """What keeps the copies of a model alike."""

    apart: int
    """Copies that make updates of their own; 1: all make the same."""
    grid: Grid
    """The grid of ranks that make one update together."""
    place: str
    """Start of the names of this copy's weights; empty: those of all copies, or the first."""
    names: tuple[str, str]
    """Starts of the names that this rank gives to what it remembers."""

    def meets(self, step: int) -> bool:
        """Tell whether copies exchange something in the step that makes `step` of them done."""

    def after_step(self, step: int, last: bool) -> None:
        """Do what is due when `step` optimizer steps are done. Collective over all copies."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Return what has to be remembered besides weights and optimizer, by a name of its own."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what was remembered; nothing: from the weights as they are."""


def keep_alike(model: ModelParts, run: RunConfig, grid: Grid) -> Copies:
    """Install the job's way of keeping copies alike."""
    names = _Names(run)
    total = choose_sum(run.sync.compression, grid.groups) if "rep" in grid.groups else None
    if total is None or run.outer is None:
        return Alike(model, total, grid, names)
    own = {name: group for name, group in grid.groups.items() if not name.startswith("rep")}
    outer = OuterUpdates(list(model.parameters()), total, grid.degree("rep"), run.outer)
    return Apart(model, total, outer, replace(grid, groups=own), names)


class _Names:
    """Names of remembered tensors: they fit the same layout and the same way of exchange only."""

    def __init__(self, run: RunConfig) -> None:
        sync, layout = run.sync, run.layout
        kind = f"{layout}.{run.schedule}.{run.chunks}.{sync.compression}.{sync.replicas_per_rack}"
        place = layout.coordinates(dist.get_rank())
        self.own = f"copies.{kind}.rank-{dist.get_rank()}."
        self.shared = f"copies.{kind}.place-{layout.rank(**{**place, 'replicate': 0})}."
        self.both = (self.own, self.shared)
        copy = place["replicate"]
        self.weights = f"copies.{kind}.copy-{copy}." if copy else ""

    def tensors(self, total: Sum | None, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = total.tensors() if total else {}
        return {
            **{self.own + name: tensor for name, tensor in found.items()},
            **{self.shared + name: tensor for name, tensor in shared.items()},
        }


class Alike:
    """Gradients are added up in every step."""

    apart, place = 1, ""

    def __init__(self, model: ModelParts, total: Sum | None, grid: Grid, names: _Names) -> None:
        self.grid, self.names = grid, names.both
        self._total, self._names = total, names
        if total is not None:
            for name, unit in _units(model):
                unit.set_all_reduce_hook(partial(_add_up, total, name))

    def meets(self, step: int) -> bool:
        """See `Copies`."""
        return True

    def after_step(self, step: int, last: bool) -> None:
        """See `Copies`."""

    def tensors(self) -> Mapping[str, Tensor]:
        """See `Copies`."""
        return self._names.tensors(self._total, {})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Copies`."""
        if self._total is not None:
            self._total.restore(_under(self._names.own, tensors))


class Apart:
    """Every copy updates itself; now and then they meet."""

    def __init__(
        self, model: ModelParts, total: Sum, outer: OuterUpdates, grid: Grid, names: _Names
    ) -> None:
        self.apart, self.grid, self.place = outer.copies, grid, names.weights
        self.names = names.both
        self._total, self._outer, self._names = total, outer, names
        for _, unit in _units(model):
            unit.set_all_reduce_hook(partial(_enlarge, outer.copies))

    def meets(self, step: int) -> bool:
        """See `Copies`."""
        return self._outer.meets(step)

    def after_step(self, step: int, last: bool) -> None:
        """See `Copies`."""
        self._outer.after_step(step, last)

    def tensors(self) -> Mapping[str, Tensor]:
        """See `Copies`."""
        shared = self._outer.tensors()
        return self._names.tensors(self._total, shared)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Copies`."""
        self._total.restore(_under(self._names.own, tensors))
        self._outer.restore(_under(self._names.shared, tensors))


def _units(model: ModelParts) -> list[tuple[str, FSDPModule]]:
    return [
        (f"{index}.{name}", module)
        for index, chunk in enumerate(model.chunks)
        for name, module in chunk.named_modules()
        if isinstance(module, FSDPModule)
    ]


def _add_up(total: Sum, name: str, shard: Tensor) -> None:
    total.begin(name, shard)()


def _enlarge(copies: int, shard: Tensor) -> None:
    """Divide by the tokens of one copy what was divided by those of all."""
    shard.mul_(copies)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
