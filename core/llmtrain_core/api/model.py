"""Section `model` of a job: the architecture and the initial weights."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel, Rule, Uri


class RopeScaling(ApiModel):
    """Scaling of the rotary frequencies for longer sequences, as in Llama 3.1."""

    factor: Annotated[float, Field(ge=1, le=1000)]
    """Divisor of the low frequencies."""
    low_freq_factor: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Frequencies with fewer turns than this in originalSequenceLength are divided."""
    high_freq_factor: Annotated[float, Field(gt=0, le=1000)] = 4.0
    """Frequencies with more turns than this in originalSequenceLength are kept."""
    original_sequence_length: Annotated[int, Field(ge=1, le=16777216)]
    """Sequence length that the model was trained on before."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.lowFreqFactor < self.highFreqFactor",
            "lowFreqFactor must be less than highFreqFactor",
            ".lowFreqFactor",
            lambda self: self.low_freq_factor < self.high_freq_factor,
        ),
    )


class Architecture(ApiModel):
    """Decoder-only transformer; the defaults are Llama's (RMSNorm, RoPE, SwiGLU)."""

    layers: Annotated[int, Field(ge=1, le=1024)]
    """Number of transformer blocks."""
    hidden_size: Annotated[int, Field(ge=1, le=1048576)]
    """Width of the residual stream."""
    heads: Annotated[int, Field(ge=1, le=4096)]
    """Number of query heads."""
    kv_heads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Number of key and value heads (grouped-query attention). Defaults to heads."""
    head_dim: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Width of one head. Defaults to hiddenSize / heads."""
    ffn_size: Annotated[int, Field(ge=1, le=4194304)]
    """Inner width of the feed-forward block, or of each expert."""
    vocab_size: Annotated[int, Field(ge=1, le=16777216)]
    """Number of rows of the embedding, and the vocabulary size of a tokenizer trained by the
    job."""
    sequence_length: Annotated[int, Field(ge=1, le=16777216)]
    """Number of tokens in a training sequence."""
    rope_theta: Annotated[float, Field(gt=0, le=1e9)] = 10000.0
    """Base of the rotary position embedding."""
    rope_scaling: RopeScaling | None = None
    """Scaling of the rotary frequencies. Not scaled when absent."""
    norm_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Epsilon of the normalization layers."""
    tied_embeddings: bool = False
    """Use the input embedding as the output projection."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Position embedding: rotary (applied to queries and keys) or learned (one vector per
    position)."""
    norm: Literal["rms", "layer"] = "rms"
    """Normalization layer: rms (RMSNorm) or layer (LayerNorm)."""
    activation: Literal["swiglu", "gelu"] = "swiglu"
    """Activation of the feed-forward block: swiglu (gated, three matrices) or gelu (two
    matrices)."""
    biases: Literal["none", "qkv", "all"] = "none"
    """Projections with a bias: none, qkv (query, key and value), or all but the output
    projection."""
    qk_norm: bool = False
    """Apply RMSNorm to the queries and keys of each head."""
    experts: Annotated[int, Field(ge=1, le=4096)] = 1
    """Number of experts per layer (mixture of experts). With 1, there is no router."""
    experts_per_token: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of experts per token. Their weights are a softmax over all experts, renormalized."""
    load_balancing_weight: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Weight of the load-balancing loss, per layer and sequence. 0 disables the loss."""

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
            "!has(self.ropeScaling) || self.positions == 'rotary'",
            "ropeScaling needs rotary positions",
            ".ropeScaling",
            lambda self: self.rope_scaling is None or self.positions == "rotary",
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
        """Number of key and value heads, with the default applied."""
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """Width of one head, with the default applied."""
        return self.head_dim or self.hidden_size // self.heads


class Model(ApiModel):
    """Model to train. Exactly one of preset and architecture must be set."""

    preset: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Name of a published architecture, for example llama3-8b."""
    architecture: Architecture | None = None
    """Architecture of the model."""
    init_from: Uri | None = None
    """Checkpoint to load initial weights from: file:///PATH of a checkpoint of this trainer, or of
    a folder of checkpoints, of which the newest complete one is used. Weights are random when
    absent."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.preset) != has(self.architecture)",
            "set exactly one of preset and architecture",
            "",
            lambda self: (self.preset is None) != (self.architecture is None),
        ),
    )
