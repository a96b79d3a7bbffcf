"""What a job trains, on what, and how: the sections `model`, `data` and `training`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtrain_core.api.base import (
    ApiModel,
    Name,
    Rule,
    Uri,
    list_map,
    list_set,
)


class Architecture(ApiModel):
    """The shape of a decoder, by default of the Llama kind (RMSNorm, RoPE, SwiGLU)."""

    layers: Annotated[int, Field(ge=1, le=1024)]
    """Number of transformer blocks."""
    hidden_size: Annotated[int, Field(ge=1, le=1048576)]
    """Width of the residual stream."""
    heads: Annotated[int, Field(ge=1, le=4096)]
    """Number of query heads."""
    kv_heads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Number of key and value heads (grouped-query attention); equal to heads when absent."""
    head_dim: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Width of one head; hiddenSize / heads when absent."""
    ffn_size: Annotated[int, Field(ge=1, le=4194304)]
    """Inner width of the feed-forward block; with experts, of each of them."""
    vocab_size: Annotated[int, Field(ge=1, le=16777216)]
    """Number of rows of the embedding; also the size of a tokenizer trained by the job."""
    sequence_length: Annotated[int, Field(ge=1, le=16777216)]
    """Tokens of one training sequence."""
    rope_theta: Annotated[float, Field(gt=0, le=1e9)] = 10000.0
    """Base of the rotary position embedding."""
    norm_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Epsilon of the norms."""
    tied_embeddings: bool = False
    """Use the input embedding as the output projection as well."""
    positions: Literal["rotary", "learned"] = "rotary"
    """How positions enter: turned into queries and keys, or a learned vector for each."""
    norm: Literal["rms", "layer"] = "rms"
    """Norm before attention, before the feed-forward block and at the end."""
    activation: Literal["swiglu", "gelu"] = "swiglu"
    """Of the feed-forward block: gated with three matrices, or plain with two."""
    biases: Literal["none", "qkv", "all"] = "none"
    """Projections with a bias: none, query, key and value, or all but the output projection."""
    qk_norm: bool = False
    """Normalise every head's queries and keys (RMSNorm)."""
    experts: Annotated[int, Field(ge=1, le=4096)] = 1
    """Feed-forward blocks per layer that a router chooses from (mixture of experts); 1: no router.
    """
    experts_per_token: Annotated[int, Field(ge=1, le=64)] = 1
    """Experts that every token visits; their weights are a softmax over all, normalised."""
    load_balancing_weight: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Weight of the loss that keeps experts evenly used, per layer and sequence; 0: none."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.kvHeads) || self.heads % self.kvHeads == 0",
            "heads must be a multiple of kvHeads",
            ".kvHeads",
            lambda self: self.heads % self.key_value_heads == 0,
        ),
        Rule(
            "has(self.headDim) || self.hiddenSize % self.heads == 0",
            "hiddenSize must be a multiple of heads, or headDim must be set",
            ".hiddenSize",
            lambda self: self.head_dim is not None or self.hidden_size % self.heads == 0,
        ),
        Rule(
            "self.positions != 'rotary'"
            " || (has(self.headDim) ? self.headDim : self.hiddenSize / self.heads) % 2 == 0",
            "the width of a head must be even: rotary embeddings turn pairs of dimensions",
            ".headDim",
            lambda self: self.positions != "rotary" or self.head_width % 2 == 0,
        ),
        Rule(
            "self.expertsPerToken <= self.experts",
            "a token cannot visit more experts than there are",
            ".expertsPerToken",
            lambda self: self.experts_per_token <= self.experts,
        ),
        Rule(
            "self.experts == 1 || self.biases != 'all'",
            "experts have no biases: set biases to none or qkv",
            ".biases",
            lambda self: self.experts == 1 or self.biases != "all",
        ),
    )

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads with the default applied."""
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """Width of one head with the default applied."""
        return self.head_dim or self.hidden_size // self.heads


class Model(ApiModel):
    """What to train: a preset or an architecture, exactly one of them."""

    preset: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Name of a published architecture, for example llama3-8b."""
    architecture: Architecture | None = None
    """The shape, spelled out."""
    init_from: Uri | None = None
    """Weights to start from instead of random ones: file:///PATH of a checkpoint of this trainer,
    or of a folder of them, whose newest complete one is taken."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.preset) != has(self.architecture)",
            "set exactly one of preset and architecture",
            holds=lambda self: (self.preset is None) != (self.architecture is None),
        ),
    )


class DataSource(ApiModel):
    """One body of text."""

    name: Name
    """Name of the source, unique in the job."""
    uri: Uri
    """Where it is: file:///PATH, or package://PACKAGE/FOLDER for text inside a Python package."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Share of this source in the mix, relative to the others."""
    format: Literal[
        "auto",
        "text",
        "jsonl",
        "parquet",
        "warc",
        "mediawiki",
        "stackexchange",
        "latex",
        "code",
        "tokens",
    ] = "auto"
    """What its files hold; auto goes by their names. Source code and prepared tokens are named."""
    filter: Literal["auto", "none", "gopher"] = "auto"
    """Quality rules: none, or those of Gopher (arXiv:2112.11446); auto applies them to warc."""


class Tokenizer(ApiModel):
    """How text becomes tokens. Absent: a byte-level BPE trained on the job's own text."""

    uri: Uri | None = None
    """A tokenizer.json to use as it is."""


class Chat(ApiModel):
    """How a conversation becomes text: exactly one of preset and template."""

    preset: Literal["plain", "chatml", "llama3"] | None = None
    """A template by name; plain puts messages on lines of their own and needs no special tokens."""
    template: Annotated[str, Field(min_length=1, max_length=16384)] | None = None
    """A Jinja template over `messages`, as tokenizers bring it along."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.preset) != has(self.template)",
            "set exactly one of preset and template",
            holds=lambda self: (self.preset is None) != (self.template is None),
        ),
    )


class Data(ApiModel):
    """What to learn from."""

    objective: Literal["pretrain", "sft"] = "pretrain"
    """Next-token pre-training, or supervised fine-tuning: sources are JSON lines of prompt and
    response, or of messages with role and content, and only responses count in the loss."""
    chat: Chat | None = None
    """How a conversation becomes text, for sft. Absent: the template beside the tokenizer, else
    plain."""
    sources: Annotated[
        list[DataSource],
        Field(min_length=1, max_length=64),
        list_map("name"),
    ]
    """Bodies of text, identified by name."""
    tokenizer: Tokenizer | None = None
    """How text becomes tokens."""
    held_out_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Share of whole documents kept back to measure held-out loss."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.chat) || self.objective == 'sft'",
            "only for objective sft",
            ".chat",
            lambda self: self.chat is None or self.objective == "sft",
        ),
    )


class Optimizer(ApiModel):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"
    """The algorithm."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 3e-4
    """Peak learning rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the second moment."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Term added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Decoupled weight decay; not applied to norms."""
    gradient_clip_norm: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Gradients are scaled down to this global norm."""


class Schedule(ApiModel):
    """Learning rate over the run: linear warm-up, then decay."""

    warmup_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Steps of linear warm-up."""
    decay: Literal["cosine", "constant"] = "cosine"
    """Shape after the warm-up."""
    min_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final learning rate as a share of the peak."""


class DiLoCo(ApiModel):
    """Outer updates of copies that train apart (DiLoCo, arXiv:2311.08105)."""

    inner_steps: Annotated[int, Field(ge=1, le=100_000)] = 30
    """Optimizer steps that every copy takes by itself between two outer updates."""
    outer_learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.7
    """Rate of the outer update, which is SGD with Nesterov momentum."""
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the outer update."""
    delay_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Steps that training goes on while an outer update crosses the network; 0: it is waited for.
    A late update is mixed in half and half (Streaming DiLoCo, arXiv:2501.18512)."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.delaySteps < self.innerSteps",
            "delaySteps must be less than innerSteps",
            ".delaySteps",
            lambda self: self.delay_steps < self.inner_steps,
        ),
    )


class GradientSync(ApiModel):
    """How gradients cross the slow dimension, between the copies of parallelism.replicate."""

    compression: Literal["none", "bf16", "int8"] = "none"
    """Numbers that cross: as they are, in 16 bits, or in 8 bits with a scale for every 256 and the
    rounding error added to the next ones (error feedback)."""
    mode: Literal["every-step", "diloco"] = "every-step"
    """Synchronise every step, or by outer updates (DiLoCo, arXiv:2311.08105)."""
    diloco: DiLoCo | None = None
    """Outer updates; the defaults when absent."""
    copies_per_rack: Annotated[int, Field(ge=1, le=65536)] = 1
    """Neighbouring copies that sit close together. With more than one, gradients are summed inside
    a rack first, so that each copy sends only its part to the other racks (hierarchical)."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.diloco) || self.mode == 'diloco'",
            "diloco needs mode diloco",
            ".diloco",
            lambda self: self.diloco is None or self.mode == "diloco",
        ),
    )

    @property
    def outer(self) -> DiLoCo | None:
        """The outer updates with defaults applied; None where copies are alike after every step."""
        return (self.diloco or DiLoCo()) if self.mode == "diloco" else None


class CollectiveProbe(ApiModel):
    """All-reduces of 4 KiB and 16 MiB in every parallel group, between two steps."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    """Steps from one to the next."""


Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The products of a layer, by their usual names."""


class Lora(ApiModel):
    """Low-rank adapters beside frozen weights (Hu et al., arXiv:2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Width of an adapter."""
    alpha: Annotated[float, Field(gt=0, le=65536)] = 16.0
    """An adapter's output is scaled by alpha / rank."""
    targets: Annotated[list[Projection], Field(min_length=1, max_length=7), list_set()] = Field(
        default=["q_proj", "v_proj"]
    )
    """Products of every layer that get an adapter."""
    merge: bool = False
    """After the last step, also write the base's weights with the adapters added in, as a
    checkpoint under merged/ in checkpoint.uri."""


class Training(ApiModel):
    """How to train: exactly one of steps and tokens says how long."""

    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Number of optimizer steps."""
    tokens: Annotated[int, Field(ge=1, le=1_000_000_000_000_000)] | None = None
    """Number of tokens; rounded up to whole steps."""
    global_batch_size: Annotated[int, Field(ge=1, le=16_777_216)]
    """Sequences of one optimizer step over all ranks."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65536)] = 1
    """Sequences of one forward pass on one data rank."""
    precision: Literal["float64", "float32", "bfloat16"] = "bfloat16"
    """Type of compute; bfloat16 keeps float32 weights and optimizer state."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    """The optimizer; AdamW with its defaults when absent."""
    schedule: Schedule = Field(default_factory=Schedule)
    """The learning-rate schedule; cosine without warm-up when absent."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 0
    """Seed of weights and of the order of data."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Which activations are computed anew in the backward pass."""
    compile: bool = False
    """Compile blocks with torch.compile."""
    gradient_sync: GradientSync = Field(default_factory=GradientSync)
    """How gradients cross the slow dimension."""
    collective_probe: CollectiveProbe | None = None
    """Measure the network between steps, without waiting for slow ranks; off when absent."""
    lora: Lora | None = None
    """Train adapters instead of the weights of model.initFrom, which stay as they are."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.steps) != has(self.tokens)",
            "set exactly one of steps and tokens",
            holds=lambda self: (self.steps is None) != (self.tokens is None),
        ),
        Rule(
            "self.globalBatchSize % self.microBatchSize == 0",
            "globalBatchSize must be a multiple of microBatchSize",
            ".globalBatchSize",
            lambda self: self.global_batch_size % self.micro_batch_size == 0,
        ),
    )
