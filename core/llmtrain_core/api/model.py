"""Section `model` of a job: the architecture and the initial weights."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel, Rule, Uri


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
