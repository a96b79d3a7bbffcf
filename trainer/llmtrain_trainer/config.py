"""The job as the trainer uses it: small frozen values with all defaults applied.

`job_spec` makes them from the API's models. Code that uses them needs no defaults of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from llmtrain_core.api.defaults import EVALUATE_TOKENS, TERMINATION_GRACE_SECONDS
from llmtrain_core.api.job import Architecture, DataSource
from llmtrain_core.api.status.network_tuning import NetworkTuningStatus
from llmtrain_core.layout import Layout
from llmtrain_core.pipeline_schedules import Schedule as PipelineSchedule
from llmtrain_core.plan.gradient_sync import SyncScheme
from llmtrain_core.plan.model.model_shape import ModelShape, shape_of

Precision = Literal["float64", "float32", "bfloat16"]

CUSTOM_MODEL = "custom"
"""Name of a model that the job describes itself."""


@dataclass(frozen=True, slots=True)
class Source:
    """One data source."""

    name: str
    uri: str
    field: str
    """Path of the URI in the job, for error messages."""
    weight: float = 1.0
    """Share of this source in training, relative to the others."""
    format: str = "auto"
    filter: str = "auto"
    cleaning: str = "none"
    """Cleaning of white space: none or web."""
    documents: str = "auto"
    """End of a document in text: auto, paragraphs, blank-line, line, separator or file."""
    separator: str | None = None
    charset: str | None = None
    """WHATWG label of the character set of text files; None detects it."""
    near_duplicates: str = "remove"
    """Near duplicates: remove or keep."""
    similarity: float = 0.8
    """Jaccard index from which on documents are near duplicates."""
    max_unusable_rows: float = 0.1
    """Largest share of the rows that may be left out."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes of the languages to keep; empty for all."""

    @classmethod
    def of(cls, source: DataSource, field: str, format_: str | None = None) -> Source:
        """Return a source of the API. `field` is the path of its URI in the job."""
        own: dict[str, Any] = {
            "field": field,
            "format": format_ or source.format,
            "languages": tuple(sorted(source.languages or ())),
        }
        same = {each.name for each in fields(cls)} - own.keys()
        return cls(**{name: getattr(source, name) for name in same}, **own)


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """How conversations are encoded."""

    max_length: int
    """Tokens per sequence; every example has to fit."""
    preset: str | None = None
    template: str | None = None
    """In Jinja. Without preset and template: the one next to the tokenizer, else `plain`."""
    overlong: str = "drop"
    """Examples longer than a sequence: drop, or truncate at the end."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Low-rank adapters on frozen weights."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    merge: bool

    def to_metadata(self) -> dict[str, Any]:
        """Return the settings that a checkpoint of adapters depends on, as in `llmtrain.json`."""
        return {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets)}


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Training data. Every field changes the prepared data and therefore its content hash."""

    sources: tuple[Source, ...]
    held_out_fraction: float
    vocab_size: int
    seed: int
    tokenizer: str | None = None
    """URI of a tokenizer.json to use instead of training a tokenizer."""
    chat: ChatConfig | None = None
    """For fine-tuning on conversations; None for documents."""
    init_from: str | None = None
    """URI of the checkpoint that training starts from. Its tokenizer is the default."""


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW with linear warm-up and decay of the learning rate."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float
    warmup_steps: int
    decay: Literal["cosine", "constant"]
    min_ratio: float


@dataclass(frozen=True, slots=True)
class OuterOptimizerConfig:
    """DiLoCo's outer optimizer: SGD with Nesterov momentum."""

    inner_steps: int
    """Optimizer steps between two outer updates."""
    delay_steps: int
    """Optimizer steps from the start of an outer update until it is applied."""
    learning_rate: float
    momentum: float


@dataclass(frozen=True, slots=True)
class NetworkTuningConfig:
    """Trials of variables instead of training."""

    candidates: tuple[Mapping[str, str], ...] | None
    """None: those of the network of the placement."""
    gpu_resource: str
    known: NetworkTuningStatus | None = None
    """What earlier attempts have found out."""


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """Where and how often to save checkpoints."""

    uri: str
    every_steps: int
    keep: int
    background: bool
    """Write while training continues."""
    export: str | None
    """Where to write Hugging Face safetensors after the last step."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The configuration of a training run."""

    name: str
    architecture: Architecture
    layout: Layout
    data: DataConfig
    optimizer: OptimizerConfig
    sync: SyncScheme
    """What crosses between copies of the model."""
    outer_optimizer: OuterOptimizerConfig | None
    """None: replicas are equal after every step."""
    checkpoint: CheckpointConfig | None
    steps: int
    global_batch: int
    """Sequences per optimizer step, over all ranks."""
    micro_batch: int
    """Sequences per forward pass on one data rank."""
    precision: Precision
    schedule: PipelineSchedule
    chunks: int
    """Model chunks per pipeline rank."""
    recompute: Literal["none", "selective", "full"]
    compile: bool
    seed: int
    hang_timeout: int
    """Seconds without progress after which a rank is considered hung."""
    startup_timeout: int
    """Seconds that ranks wait for each other at the start."""
    max_restarts_in_place: int
    """Most restarts in the same pods, in a row without a newer checkpoint."""
    grace_seconds: int = TERMINATION_GRACE_SECONDS
    """Seconds between SIGTERM and SIGKILL of the pod."""
    ranks_per_node: int = 1
    tunable: frozenset[str] = frozenset()
    """Fields of `sync` that are tried in the first steps on a placement."""
    network_tuning: NetworkTuningConfig | None = None
    """None: train. Else `steps` are those of each trial."""
    network_probe_steps: int | None = None
    """Steps between two network probes; None for no probes."""
    evaluate_every: int | None = None
    """Steps between two evaluations; None for none between steps."""
    evaluate_tokens: int = EVALUATE_TOKENS
    """Most held-out tokens of an evaluation."""
    trackers: tuple[str, ...] = ()
    init_from: str | None = None
    """URI of the checkpoint with the initial weights."""
    lora: LoraConfig | None = None
    """None: train all weights."""
    divides_documents: bool = False
    """Attention and positions stay inside documents, or inside packed examples."""
    tokens: int | None = None
    """Real tokens to train on, if the job names them. `steps` are then those without padding."""
    packing: bool | None = None
    """Several examples per sequence. None: yes, unless a checkpoint was written without."""
    namespace: str = ""
    """Empty if the job does not run in a cluster."""
    model: str = CUSTOM_MODEL
    """Name of the model's preset."""

    @property
    def shape(self) -> ModelShape:
        """Input of the plan's formulas: the architecture and its trainable parameters."""
        shape, lora = shape_of(self.architecture), self.lora
        return shape if lora is None else shape.with_adapters(lora.rank, lora.targets)

    @property
    def lora_metadata(self) -> dict[str, Any] | None:
        """The adapters as in `llmtrain.json`."""
        return self.lora.to_metadata() if self.lora else None

    @property
    def sequence(self) -> int:
        """Tokens per sequence."""
        return self.architecture.sequence_length

    @property
    def replicas(self) -> int:
        """Groups of ranks with different sequences."""
        return self.layout.data * self.layout.replicate

    @property
    def local_batch(self) -> int:
        """Sequences per optimizer step on one data rank."""
        return self.global_batch // self.replicas

    @property
    def micro_batches(self) -> int:
        """Forward passes per optimizer step."""
        return self.local_batch // self.micro_batch

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step over all ranks, padding included."""
        return self.global_batch * self.sequence
