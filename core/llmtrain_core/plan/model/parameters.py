"""Exact parameter counts of a model and of one rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import prod

from llmtrain_core.api.job import Architecture
from llmtrain_core.pipeline_schedules import Schedule, stage_numbers
from llmtrain_core.plan.model.model_shape import ModelShape, shape_of


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Numbers of parameters (not bytes) by the part of the model that holds them."""

    embedding: int
    """Input embedding, vocabSize x hiddenSize."""
    attention: int
    """Query, key, value and output projections of all layers, with their biases."""
    feed_forward: int
    """Projections of the feed-forward blocks of all layers, with their biases."""
    norms: int
    """Two norms per layer, those of queries and keys, and the final one."""
    output: int
    """Output projection; 0 when it is tied to the input embedding."""
    positions: int = 0
    """Learned positions."""
    router: int = 0
    """Routers of all layers, experts x hiddenSize each."""
    idle: int = 0
    """Parameters of the experts that are not selected for a token, over all layers."""
    adapters: int = 0
    """Low-rank adapters; 0 if the model itself is trained."""

    @property
    def total(self) -> int:
        """All parameters of the model."""
        blocks = self.attention + self.feed_forward + self.router + self.norms
        return self.embedding + self.positions + blocks + self.output

    @property
    def active(self) -> int:
        """Parameters that are used for one token; all parameters without experts."""
        return self.total - self.idle

    @property
    def learning(self) -> int:
        """Parameters that have gradients and optimizer state."""
        return self.adapters or self.total

    @property
    def multiplied(self) -> int:
        """Parameters that are multiplied for each token.

        This is the N' of the FLOP formulas: a lookup in the input embedding has no FLOPs, but a
        tied embedding is multiplied as the output projection.
        """
        return self.active - self.positions - (self.embedding if self.output else 0)


@dataclass(frozen=True, slots=True)
class ParameterTensor:
    """A parameter tensor of one tensor-parallel rank; FSDP shards its first dimension."""

    name: str
    shape: tuple[int, ...]
    replicated: bool = False
    """All tensor-parallel ranks hold the same values."""
    frozen: bool = False
    """It has no gradient."""
    copy: bool = False
    """A copy of another stage's tensor, without optimizer state."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def sharded(self, ranks: int) -> int:
        """Return the number of elements on the first of `ranks` FSDP ranks.

        FSDP2 shards dimension 0 in chunks of ceil(rows / ranks), as `torch.chunk` does, so the
        first rank holds the most.
        """
        rows, *rest = self.shape
        return -(-rows // ranks) * prod(rest)


@dataclass(frozen=True, slots=True)
class PipelineStage:
    """Layers and model ends of one pipeline rank, over all its chunks."""

    layers: int
    embeds: bool
    predicts: bool
    apart: bool = False
    """The rank has both ends of the model, in different chunks."""


@cache
def stages(
    layers: int, ranks: int, schedule: Schedule = "1F1B", chunks: int = 1
) -> tuple[PipelineStage, ...]:
    """Return the stage of each pipeline rank; the first stages have the remaining layers."""
    count = ranks * chunks
    share, extra = divmod(layers, count)
    found = []
    for rank in range(ranks):
        mine = stage_numbers(schedule, rank, ranks, chunks)
        embeds, predicts = 0 in mine, count - 1 in mine
        held = sum(share + (number < extra) for number in mine)
        found.append(PipelineStage(held, embeds, predicts, embeds and predicts and len(mine) > 1))
    return tuple(found)


def count_parameters(model: Architecture | ModelShape) -> ParameterCount:
    """Return the exact parameter count of a whole model."""
    shape = shape_of(model)
    block = (*block_tensors(shape), *expert_tensors(shape))
    ends = {tensor.name: tensor.size for tensor in end_tensors(shape)}

    def of(*parts: str) -> int:
        return sum(tensor.size for tensor in block if tensor.name.startswith(parts))

    feed_forward = shape.layers * of("ffn.")
    visited = shape.experts_per_token
    return ParameterCount(
        embedding=ends["embedding"],
        attention=shape.layers * of("attention."),
        feed_forward=feed_forward,
        norms=shape.layers * of("norm.") + sum(n for key, n in ends.items() if "norm" in key),
        output=ends.get("output", 0),
        positions=ends.get("positions", 0),
        router=shape.layers * of("router"),
        idle=feed_forward // shape.experts * (shape.experts - visited),
        adapters=shape.layers * of("lora."),
    )


@cache
def block_tensors(shape: ModelShape, tensor: int = 1) -> tuple[ParameterTensor, ...]:
    """Return the parameters of one layer on one of `tensor` ranks, experts left out.

    Query, key, value, gate and up are split by rows of (out, in); output and down by columns; their
    biases and the norms are held by every rank (Shoeybi et al., arXiv:1909.08053).
    """
    hidden, queries, keys = shape.hidden_size, shape.query_width, shape.key_width
    ffn = shape.ffn_size // tensor
    columns = [("attention.query", queries), ("attention.key", keys), ("attention.value", keys)]
    found = [ParameterTensor(name, (width // tensor, hidden)) for name, width in columns]
    found.append(ParameterTensor("attention.output", (hidden, queries // tensor)))
    if shape.biases or shape.qkv_biases:
        found += [ParameterTensor(f"{name}.bias", (width // tensor,)) for name, width in columns]
    if shape.biases:
        found.append(ParameterTensor("attention.output.bias", (hidden,), replicated=True))
    if shape.experts > 1:
        found.append(ParameterTensor("router", (shape.experts, hidden), replicated=True))
    else:
        found += [ParameterTensor("ffn.gate", (ffn, hidden))] if shape.gated else []
        found += [
            ParameterTensor("ffn.up", (ffn, hidden)),
            ParameterTensor("ffn.down", (hidden, ffn)),
        ]
    if shape.biases and shape.experts == 1:
        found += [
            ParameterTensor("ffn.up.bias", (ffn,)),
            ParameterTensor("ffn.down.bias", (hidden,), replicated=True),
        ]
    if shape.qk_norm:
        for name in ("norm.query.scale", "norm.key.scale"):
            found.append(ParameterTensor(name, (shape.head_width,), replicated=True))
    found += [*_norm(shape, "norm.attention"), *_norm(shape, "norm.ffn")]
    return (*_frozen(shape, found), *adapter_tensors(shape, tensor))


def adapter_tensors(shape: ModelShape, tensor: int = 1) -> Iterator[ParameterTensor]:
    """Yield the adapters of one layer on one of `tensor` ranks: A (rank, in) and B (out, rank).

    For a weight that is split by rows, B is split and A is replicated; for a weight that is split
    by columns, A is split and B is replicated.
    """
    if shape.adapters is None:
        return
    hidden, rank = shape.hidden_size, shape.adapters.rank
    columns = {
        "q_proj": shape.query_width,
        "k_proj": shape.key_width,
        "v_proj": shape.key_width,
        "gate_proj": shape.ffn_size,
        "up_proj": shape.ffn_size,
    }
    rows = {"o_proj": shape.query_width, "down_proj": shape.ffn_size}
    for target in shape.adapters.targets:
        if target in columns:
            yield ParameterTensor(f"lora.{target}.a", (rank, hidden), replicated=True)
            yield ParameterTensor(f"lora.{target}.b", (columns[target] // tensor, rank))
        else:
            yield ParameterTensor(f"lora.{target}.a", (rank, rows[target] // tensor))
            yield ParameterTensor(f"lora.{target}.b", (hidden, rank), replicated=True)


def _frozen(shape: ModelShape, tensors: Iterable[ParameterTensor]) -> Iterator[ParameterTensor]:
    """Yield the base tensors, which are frozen if there are adapters."""
    return (replace(tensor, frozen=shape.adapters is not None) for tensor in tensors)


@cache
def expert_tensors(
    shape: ModelShape, tensor: int = 1, expert: int = 1
) -> tuple[ParameterTensor, ...]:
    """Return the experts of one layer on one of `tensor` ranks and one of `expert` ranks.

    Stacked; FSDP shards them along the hidden size, which therefore comes first.
    """
    if shape.experts == 1:
        return ()
    size = (shape.hidden_size, shape.experts // expert, shape.ffn_size // tensor)
    names = ("ffn.gate", "ffn.up", "ffn.down") if shape.gated else ("ffn.up", "ffn.down")
    return tuple(ParameterTensor(name, size) for name in names)


@cache
def end_tensors(
    shape: ModelShape,
    tensor: int = 1,
    *,
    embeds: bool = True,
    predicts: bool = True,
    apart: bool = False,
) -> tuple[ParameterTensor, ...]:
    """Return the parameters outside the layers: embeddings and the final norm and output.

    An output stage with a tied embedding in another chunk or stage has a copy of it.

    A vocabulary that `tensor` does not divide is padded (as Megatron-LM does; the trainer refuses).
    """
    rows = -(-shape.vocab_size // tensor)
    found: list[ParameterTensor] = []
    if embeds:
        found.append(ParameterTensor("embedding", (rows, shape.hidden_size)))
        if shape.learned_positions:
            positions = (shape.learned_positions, shape.hidden_size)
            found.append(ParameterTensor("positions", positions, replicated=True))
    if predicts:
        found += _norm(shape, "final.norm")
        if not shape.tied_embeddings or not embeds or apart:
            copied = shape.tied_embeddings
            found.append(ParameterTensor("output", (rows, shape.hidden_size), copy=copied))
    return tuple(_frozen(shape, found))


def _norm(shape: ModelShape, name: str) -> list[ParameterTensor]:
    scale = ParameterTensor(f"{name}.scale", (shape.hidden_size,), replicated=True)
    shift = ParameterTensor(f"{name}.shift", (shape.hidden_size,), replicated=True)
    return [scale] if shape.norm == "rms" else [scale, shift]


@dataclass(frozen=True, slots=True)
class UnitSizes:
    """Elements of each kind of FSDP unit: of all tensors, or of one rank's shards."""

    block: int
    """Of one layer, without its experts."""
    experts: int
    """Of the experts of one layer."""
    ends: int
    copies: int
    """Share of `ends` that another stage updates."""


@dataclass(frozen=True, slots=True, eq=False)
class FsdpUnits:
    """A stage's parameters in the units that FSDP gathers: layers, their experts, and the ends.

    `stage_units` caches one instance per stage, so instances are compared by identity.
    """

    block: tuple[ParameterTensor, ...]
    experts: tuple[ParameterTensor, ...]
    """Experts of one layer; a separate unit, sharded over fewer ranks."""
    expert: int
    """Expert-parallel degree."""
    layers: int
    ends: tuple[ParameterTensor, ...]
    size: int
    """Parameters of one tensor-parallel rank of the stage."""
    count: int
    """Number of units."""
    learning: FsdpUnits | None = None
    """Units that have gradients; None if all have."""

    @property
    def whole(self) -> UnitSizes:
        """Elements of the units when they are gathered."""
        return _sizes(self, 1, 1)

    def shards(self, ranks: int) -> UnitSizes:
        """Elements on the first of `ranks` FSDP ranks; experts have `ranks / expert` of them."""
        return _sizes(self, ranks, ranks // self.expert)

    def sharded(self, ranks: int) -> int:
        """Parameters that the first of `ranks` FSDP ranks holds."""
        shards = self.shards(ranks)
        return self.layers * (shards.block + shards.experts) + shards.ends

    def updated(self, ranks: int) -> int:
        """Parameters that the rank updates; copies are updated by another stage."""
        return self.sharded(ranks) - self.shards(ranks).copies

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return self.whole.block + self.whole.experts

    @property
    def learnt(self) -> FsdpUnits:
        """Units of the stage that have gradients."""
        return self.learning or self


@cache
def stage_units(
    shape: ModelShape, stage: PipelineStage, tensor: int = 1, expert: int = 1
) -> FsdpUnits:
    """Return the units of one tensor- and expert-parallel rank of a stage."""
    block, experts = block_tensors(shape, tensor), expert_tensors(shape, tensor, expert)
    ends = end_tensors(
        shape, tensor, embeds=stage.embeds, predicts=stage.predicts, apart=stage.apart
    )
    per_layer, layers = 2 if experts else 1, stage.layers
    units = per_layer * layers + (2 if stage.apart else 1 if ends else 0)
    learning = None
    if shape.adapters is not None:
        adapters = tuple(each for each in block if not each.frozen)
        learning = FsdpUnits(adapters, (), 1, layers, (), layers * size(adapters), layers)
    whole = layers * (size(block) + size(experts)) + size(ends)
    return FsdpUnits(block, experts, expert, layers, ends, whole, units, learning)


@cache
def _sizes(units: FsdpUnits, ranks: int, expert_ranks: int) -> UnitSizes:
    return UnitSizes(
        sharded(units.block, ranks),
        sharded(units.experts, expert_ranks),
        sharded(units.ends, ranks),
        sharded((tensor for tensor in units.ends if tensor.copy), ranks),
    )


def size(tensors: Iterable[ParameterTensor]) -> int:
    """Return the number of elements of tensors."""
    return sum(tensor.size for tensor in tensors)


def sharded(tensors: Iterable[ParameterTensor], ranks: int) -> int:
    """Return the number of elements of tensors on the first of `ranks` FSDP ranks."""
    return sum(tensor.sharded(ranks) for tensor in tensors)
