"""Synchronization of replicas of a sharded model: HSDP whose replica dimension is not FSDP's.

FSDP shards over the data ranks only. Once per unit and optimizer step it calls a hook with every
flat, reduce-scattered gradient shard. An all-reduce over the replicas in this hook gives the same
result as FSDP on two dimensions, and works with tensor and pipeline parallelism. Here the traffic
between replicas can be changed. With DiLoCo, replicas train independently and synchronize every few
steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch.distributed as dist
from torch import Tensor

from llmtrain_core.plan.network.communication import REPLICA_GROUPS
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.parallel.fsdp import units
from llmtrain_trainer.parallel.mesh import LABELS, Grid
from llmtrain_trainer.parallel.model_parts import ModelParts
from llmtrain_trainer.parallel.replicate.all_reduce import AllReduce
from llmtrain_trainer.parallel.replicate.choose import choose_all_reduce
from llmtrain_trainer.parallel.replicate.diloco import OuterOptimizer
from llmtrain_trainer.parallel.replicate.gradient_sums import GradientSums


class ReplicaSync(Protocol):
    """Keeps the replicas of a model synchronized."""

    independent_replicas: int
    """Number of replicas that update their weights independently. 1: all make the same update."""
    grid: Grid
    """The grid of ranks that make one update together."""
    weights_prefix: str
    """Name prefix of this replica's weights in checkpoints. Empty if all replicas have equal
    weights, and for the first replica."""
    state_prefixes: tuple[str, str]
    """Name prefixes of this rank's state in checkpoints."""

    def complete_gradients(self) -> None:
        """Complete the sums of gradients, after the backward pass."""

    def syncs_at(self, step: int) -> bool:
        """Return True if replicas communicate in the step that completes step number `step`."""

    def after_step(self, step: int, last: bool) -> None:
        """Do what is due after `step` optimizer steps. Collective over all replicas."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the state besides weights and optimizer, by unique names."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the state. Without any, start from the current weights."""


def build_replica_sync(model: ModelParts, run: RunConfig, grid: Grid) -> ReplicaSync:
    """Install the replica synchronization of the job."""
    if "dp_replicate" not in grid.groups or run.outer_optimizer is None:
        return EveryStepSync(model, run, grid)
    all_reduce = choose_all_reduce(run.sync.compression, grid.groups)
    inner = {
        name: group for name, group in grid.groups.items() if LABELS[name] not in REPLICA_GROUPS
    }
    outer = OuterOptimizer(
        list(model.parameters()), all_reduce, grid.degree("replicate"), run.outer_optimizer
    )
    return DiLoCoSync(model, all_reduce, outer, replace(grid, groups=inner), _StateNames(run))


class _StateNames:
    """Names of state tensors in checkpoints. They match one layout and one kind of sync only."""

    def __init__(self, run: RunConfig) -> None:
        sync, layout = run.sync, run.layout
        kind = f"{layout}.{run.schedule}.{run.chunks}.{sync.compression}.{sync.replicas_per_rack}"
        if sync.bucket_bytes or sync.chunks > 1:
            kind += f".{sync.bucket_bytes}.{sync.chunks}"
        coordinates = layout.coordinates(dist.get_rank())
        self.own = f"copies.{kind}.rank-{dist.get_rank()}."
        self.shared = f"copies.{kind}.place-{layout.rank(**{**coordinates, 'replicate': 0})}."
        self.both = (self.own, self.shared)
        copy = coordinates["replicate"]
        self.weights = f"copies.{kind}.copy-{copy}." if copy else ""

    def state_dict(
        self, all_reduce: AllReduce | None, shared: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        found = all_reduce.state_dict() if all_reduce else {}
        return {
            **{self.own + name: tensor for name, tensor in found.items()},
            **{self.shared + name: tensor for name, tensor in shared.items()},
        }


class EveryStepSync:
    """Sums gradients over the replicas in every step."""

    independent_replicas, weights_prefix = 1, ""

    def __init__(self, model: ModelParts, run: RunConfig, grid: Grid) -> None:
        self.use(run, grid)
        if self._sums is not None:
            for name, unit in units(model):
                unit.set_all_reduce_hook(partial(self._add, name))

    def use(self, run: RunConfig, grid: Grid) -> None:
        """Synchronize by the scheme of `run` from now on, over the groups of `grid`.

        Rounding errors that compression carries to the next step are dropped.
        """
        self.grid, self._names = grid, _StateNames(run)
        self.state_prefixes = self._names.both
        self._sums: GradientSums | None = None
        if "dp_replicate" in grid.groups:
            all_reduce = choose_all_reduce(run.sync.compression, grid.groups)
            self._sums = GradientSums(all_reduce, run.sync)

    def complete_gradients(self) -> None:
        """See `ReplicaSync`."""
        if self._sums is not None:
            self._sums.complete()

    def syncs_at(self, step: int) -> bool:
        """See `ReplicaSync`."""
        return True

    def after_step(self, step: int, last: bool) -> None:
        """See `ReplicaSync`."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """See `ReplicaSync`."""
        return self._names.state_dict(self._sums.all_reduce if self._sums else None, {})

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """See `ReplicaSync`."""
        if self._sums is not None:
            own = _strip_prefix(self._names.own, state_dict)
            self._sums.all_reduce.load_state_dict(own)

    def _add(self, name: str, shard: Tensor) -> None:
        """Sum the reduce-scattered gradients of a unit: a hook of FSDP."""
        assert self._sums is not None
        self._sums.add(name, shard)


class DiLoCoSync:
    """Replicas train independently and synchronize every few steps."""

    def __init__(
        self,
        model: ModelParts,
        all_reduce: AllReduce,
        outer: OuterOptimizer,
        grid: Grid,
        names: _StateNames,
    ) -> None:
        self.independent_replicas, self.grid = outer.replicas, grid
        self.weights_prefix, self.state_prefixes = names.weights, names.both
        self._all_reduce, self._outer, self._names = all_reduce, outer, names
        for _, unit in units(model):
            unit.set_all_reduce_hook(partial(_rescale_hook, outer.replicas))

    def complete_gradients(self) -> None:
        """See `ReplicaSync`."""

    def syncs_at(self, step: int) -> bool:
        """See `ReplicaSync`."""
        return self._outer.syncs_at(step)

    def after_step(self, step: int, last: bool) -> None:
        """See `ReplicaSync`."""
        self._outer.after_step(step, last)

    def state_dict(self) -> Mapping[str, Tensor]:
        """See `ReplicaSync`."""
        shared = self._outer.state_dict()
        return self._names.state_dict(self._all_reduce, shared)

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """See `ReplicaSync`."""
        self._all_reduce.load_state_dict(_strip_prefix(self._names.own, state_dict))
        self._outer.load_state_dict(_strip_prefix(self._names.shared, state_dict))


def _rescale_hook(replicas: int, shard: Tensor) -> None:
    """Normalize by the tokens of one replica instead of the tokens of all."""
    shard.mul_(replicas)


def _strip_prefix(prefix: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state_dict.items()
        if name.startswith(prefix)
    }
