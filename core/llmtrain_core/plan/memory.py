"""GPU memory by part, in bytes, of the rank that needs the most.

State: stored weights, gradients and the two Adam moments (with what copies keep for their exchange:
`llmtrain_core.plan.exchange`). For fsdp2 each is 32 bits and sharded
over the data ranks: 16 bytes a parameter over d. For zero1, 16-bit weights and 32-bit gradients
stay whole and the 32-bit master weights and moments are sharded: 6 + 12 / d (Rajbhandari et al.,
arXiv:1910.02054; Megatron-LM's distributed optimizer). For ddp nothing is sharded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmtrain_core.plan.activations import block_bytes_per_token, boundary_bytes_per_token
from llmtrain_core.plan.bubble import peak_micro_batches
from llmtrain_core.plan.exchange import state_values
from llmtrain_core.plan.parameters import Stage, size
from llmtrain_core.plan.recipe import COMPUTE_BYTES, MASTER_BYTES, Recipe

FRAGMENTATION = 0.05
"""Share added for what the allocator cannot use (with expandable segments it stays within it)."""
RUNTIME_BYTES = 2 * 1024**3
"""CUDA context, cuBLAS workspace and NCCL buffers: 1 to 2 GiB in practice."""
LOGITS_BYTES = 10
"""Bytes a logit takes at its peak: 16 bits from the product, float32 copy and log-softmax; in the
backward pass the float32 gradient stands where the copy was."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank by part, and what the GPU has."""

    parts: Mapping[str, int]
    """weights, gradients, optimizer, gathered, activations, logits, runtime, fragmentation."""
    capacity: int
    """Bytes of the GPU's memory; 0 when no GPU is named."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the GPU holds all parts, margin included."""
        return self.total <= self.capacity

    @property
    def least(self) -> int:
        """What is needed without margins: a GPU smaller than this cannot run it."""
        margins = self.parts["fragmentation"] + self.parts["runtime"]
        return self.total - margins


def memory(recipe: Recipe, capacity: int = 0) -> Memory:
    """Return the memory of the rank that needs the most, on a GPU with `capacity` bytes."""
    ranks = [stage_memory(recipe, index) for index in recipe.kinds]
    return Memory(max(ranks, key=lambda parts: sum(parts.values())), capacity)


def stage_memory(recipe: Recipe, rank: int) -> dict[str, int]:
    """Return bytes by part on one pipeline rank."""
    stage = recipe.stages[rank]
    parts = {
        **state_bytes(recipe, stage),
        "gathered": gathered_bytes(recipe, stage),
        "activations": activation_bytes(recipe, stage, rank),
        "logits": _logits_bytes(recipe, stage, rank),
    }
    margin = int(FRAGMENTATION * sum(parts.values()))
    return {**parts, "runtime": RUNTIME_BYTES, "fragmentation": margin}


def state_bytes(recipe: Recipe, stage: Stage) -> dict[str, int]:
    """Return exact bytes of weights, gradients and optimizer state of the fullest data rank.

    Frozen weights have neither gradients nor moments.
    """
    units = recipe.units(stage)
    whole = units.size
    master, compute = MASTER_BYTES[recipe.precision], COMPUTE_BYTES[recipe.precision]
    if recipe.sharding == "fsdp2":
        shard = units.sharded(recipe.shard_ranks)
        learnt, moved = (each(recipe.shard_ranks) for each in
                         (units.learnt.sharded, units.learnt.updated))  # fmt: skip
        kept = state_values(recipe.exchange, learnt, recipe.layout.replicate)
        return {"weights": master * shard, "gradients": master * learnt,
                "optimizer": master * (2 * moved + kept)}  # fmt: skip
    ranks = recipe.shard_ranks * recipe.layout.replicate if recipe.sharding == "zero1" else 1
    moments = 2 * master + (master if compute < master else 0)
    # one flat buffer, dealt out in equal parts
    return {"weights": compute * whole, "gradients": master * whole,
            "optimizer": moments * -(-whole // ranks)}  # fmt: skip


def gathered_bytes(recipe: Recipe, stage: Stage) -> int:
    """Return bytes of whole parameters and whole gradients that FSDP holds for computing.

    With one micro-batch and no pipeline: the ends of the model, which stay gathered, the block at
    work and the one fetched ahead, and one block's gradient. With several, or a pipeline, gradients
    are accumulated whole in the reduction's type and weights stay gathered between passes, because
    ranks synchronise once a step.
    """
    if recipe.sharding != "fsdp2":
        return 0
    units = recipe.units(stage)
    compute, master = COMPUTE_BYTES[recipe.precision], MASTER_BYTES[recipe.precision]
    if recipe.shard_ranks == 1 and compute == master:
        return 0
    block, ends = units.layer, size(units.ends)
    several = recipe.layout.pipeline > 1 or recipe.micro_batches > 1
    if several and not recipe.syncs_always:
        return compute * units.size + master * units.learnt.size
    in_flight = min(2, units.layers) * block + ends
    learnt = units.learnt
    return compute * (in_flight + max(size(learnt.block), size(learnt.ends)))


def activation_bytes(recipe: Recipe, stage: Stage, rank: int) -> int:
    """Return bytes kept for the backward pass, of all micro-batches in flight.

    Under full recomputation a layer keeps its input only; one layer at a time is whole again.
    """
    tokens, tensor = recipe.local_tokens, recipe.layout.tensor
    compute = COMPUTE_BYTES[recipe.precision]
    per_layer = tokens * block_bytes_per_token(
        recipe.shape, tensor, compute, recipe.checkpointing, recipe.kernels
    )
    in_flight = peak_micro_batches(
        recipe.schedule, recipe.layout.pipeline, recipe.micro_batches, recipe.chunks, rank
    )
    kept = in_flight * (
        stage.layers * per_layer
        + tokens * boundary_bytes_per_token(recipe.shape, tensor, compute, stage, recipe.kernels)
    )
    if recipe.checkpointing != "none":
        kept += tokens * block_bytes_per_token(
            recipe.shape, tensor, compute, "none", recipe.kernels
        )
    return int(kept)


def _logits_bytes(recipe: Recipe, stage: Stage, rank: int) -> int:
    """Return the peak around the loss; micro-batches in flight keep their log-softmax."""
    if not stage.predicts:
        return 0
    width = -(-recipe.shape.vocab_size // recipe.layout.tensor)
    wide = MASTER_BYTES[recipe.precision]
    waiting = recipe.micro_batches - 1 if recipe.schedule == "GPipe" else 0
    if recipe.layout.pipeline == 1:
        waiting = 0
    at_peak = LOGITS_BYTES if wide == 4 else 3 * wide
    return recipe.local_tokens * width * (at_peak + wide * waiting)


def binary(nbytes: float) -> str:
    """Return bytes as text with a binary prefix, as memory is sold."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"
