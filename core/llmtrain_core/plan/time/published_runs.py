"""Published training runs, with setup, step time and source.

The list has only runs whose layout, batch, micro-batch and recomputation are all published. No
value is guessed. This excludes MaxText and Paxml (recomputation), Megatron-LM's 2021 table and
torchtitan's 405B (micro-batches), 70B on GB200 and GB300 (do not fit without a recomputation that
is not named), and mixtures of experts (no such shape in this module). A sweep over GPU counts
contributes its smallest, a middle and its largest run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from llmtrain_core.layout import Layout
from llmtrain_core.pipeline_schedules import Schedule
from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.model.flops import training_flops_per_token
from llmtrain_core.plan.model.model_shape import SHAPES, ModelShape, gpt
from llmtrain_core.plan.training_setup import Precision, TrainingSetup

_DGXC = "NVIDIA/dgxc-benchmarking {} (24.09-24.12)"
_BRIDGE = "NVIDIA-NeMo/Megatron-Bridge docs/performance-summary.md, 25.11"
_TITAN = "pytorch/torchtitan benchmarks/llama3_h100_202412_torchtitan.md"
_ASYNC = "pytorch/torchtitan benchmarks/asyncTP_llama3_h100_2025-06_torchtitan.md"
_H200 = "pytorch/torchtitan benchmarks/llama3_8b_h200_2025-06_torchtitan_trainy_whitefiber.md"
_NANOTRON = "huggingface/nanotron docs/benchmark_summary.svg, scripts/scaling_benchmarks.py"
_KORTHIKANTI = "Korthikanti et al., arXiv:2205.05198, table 5"
_FOUNDRY = "mosaicml/llm-foundry scripts/train/benchmarking/README.md"


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """One measured run."""

    name: str
    source: str
    hardware: str
    """Row of the catalogue."""
    setup: TrainingSetup
    seconds: float
    """Measured time of a step."""
    counted: bool = True
    """Whether all inputs of the model are published, including the network between servers."""

    @property
    def gpus(self) -> int:
        """GPUs of the run."""
        return self.setup.layout.world_size


def published_runs() -> list[PublishedRun]:
    """Return every run, grouped by source."""
    return [*_dgxc(), *_bridge(), *_torchtitan(), *_nanotron(), *_megatron_lm(), *_foundry()]


def _from_rate(
    name: str, source: str, hardware: str, setup: TrainingSetup, tokens_per_gpu: float
) -> PublishedRun:
    seconds = setup.tokens_per_step / (tokens_per_gpu * setup.layout.world_size)
    return PublishedRun(name, source, hardware, setup, seconds)


def _from_mfu(
    name: str, source: str, hardware: str, setup: TrainingSetup, percent: float
) -> PublishedRun:
    """Return a run from its utilization of the 16-bit peak, with full attention."""
    flops = training_flops_per_token(setup.shape, "full-attention") * setup.tokens_per_step
    peak = CATALOGUE[hardware].peak("bfloat16") * setup.layout.world_size
    return PublishedRun(name, source, hardware, setup, flops / (peak * percent / 100))


def _megatron(
    shape: ModelShape,
    gpus: int,
    batch: int,
    *,
    precision: Precision = "bfloat16",
    tp: int = 1,
    pp: int = 1,
    cp: int = 1,
    chunks: int = 1,
    micro: int = 1,
) -> TrainingSetup:
    """Return a setup of Megatron Core with Transformer Engine."""
    interleaved: Schedule = "Interleaved1F1B" if chunks > 1 else "1F1B"
    return TrainingSetup(
        shape,
        Layout(tensor=tp, context=cp, data=gpus // (tp * pp * cp), pipeline=pp),
        batch,
        micro,
        precision,
        "none",
        "zero1",
        interleaved,
        chunks,
        "fused",
        overlaps_tensor=True,
    )


def _dgxc() -> Iterator[PublishedRun]:
    """Yield runs of weak scaling. Rows: GPUs, batch, seconds in bfloat16, seconds in float8."""
    for file, model, layout, runs in _DGXC_RUNS:
        shape = SHAPES[model]
        if model == "gpt3-175b":
            shape = replace(shape, vocab_size=51200)
        for gpus, batch, *seconds in runs:
            for precision, measured in zip(_BOTH, seconds, strict=True):
                setup = _megatron(shape, int(gpus), int(batch), precision=precision, **dict(layout))
                yield PublishedRun(model, _DGXC.format(file), "H100", setup, measured)


_BOTH: tuple[Precision, ...] = ("bfloat16", "float8")
_DGXC_RUNS: tuple[tuple[str, str, Mapping[str, int], tuple[tuple[float, ...], ...]], ...] = (
    (
        "llama3.1/README_8b.md",
        "llama3-8b",
        {"cp": 2},
        ((8, 128, 12.91, 9.67), (32, 512, 13.05, 9.75), (128, 2048, 13.10, 9.82)),
    ),
    (
        "llama3.1/README_70b.md",
        "llama3-70b",
        {"tp": 4, "pp": 4, "cp": 2, "chunks": 5},
        ((64, 128, 14.72, 11.01), (512, 1024, 14.89, 11.18), (2048, 4096, 14.98, 11.39)),
    ),
    (
        "llama3.1/README_405b.md",
        "llama3.1-405b",
        {"tp": 8, "pp": 9, "cp": 2, "chunks": 7},
        ((576, 252, 17.20, 11.24), (1152, 504, 17.52, 11.31), (2304, 1008, 17.62, 12.35)),
    ),
    (
        "nemotron/README_15b.md",
        "nemotron4-15b",
        {"tp": 4, "micro": 4},
        ((16, 64, 2.812, 2.039), (256, 1024, 2.852, 2.075), (2048, 8192, 2.887, 2.12)),
    ),
    (
        "nemotron/README_340b.md",
        "nemotron4-340b",
        {"tp": 8, "pp": 8, "chunks": 12},
        ((128, 32, 4.61, 3.16), (512, 128, 4.70, 3.26), (2048, 512, 4.84, 3.49)),
    ),
    (
        "nemo_megatron/README_175b.md",
        "gpt3-175b",
        {"tp": 4, "pp": 8, "chunks": 12},
        ((128, 256, 8.309, 5.626), (512, 1024, 8.42, 5.774), (2048, 4096, 8.49, 5.96)),
    ),
)


def _bridge() -> Iterator[PublishedRun]:
    small, middle, large = (SHAPES[f"llama3{n}"] for n in ("-8b", "-70b", ".1-405b"))
    sharded = replace(
        _megatron(small, 8, 128, precision="float8"), sharding="fsdp2", syncs_always=True
    )
    yield _from_rate("llama3 8b fsdp", _BRIDGE, "H100", sharded, 14451)
    for hardware, shape, gpus, batch, layout, rate in (
        ("H100", middle, 64, 128, {"tp": 4, "pp": 8, "chunks": 5}, 1602),
        ("H100", large, 1024, 512, {"tp": 8, "pp": 8, "cp": 2, "chunks": 8}, 292),
        ("B200", small, 8, 128, {"micro": 2}, 30624),
        ("B200", large, 128, 64, {"tp": 4, "pp": 8, "cp": 2, "chunks": 8}, 661),
        ("GB200", small, 8, 128, {"micro": 2}, 31508),
        ("GB200", large, 256, 1536, {"tp": 4, "pp": 16, "chunks": 4}, 813),
        ("GB300", small, 8, 128, {"micro": 2}, 37556),
        ("GB300", large, 256, 1536, {"tp": 2, "pp": 8, "cp": 2, "chunks": 4}, 999),
    ):
        setup = _megatron(shape, gpus, batch, precision="float8", **layout)
        name = {small: "llama3 8b", middle: "llama3 70b", large: "llama3 405b"}[shape]
        yield _from_rate(name, _BRIDGE, hardware, setup, rate)
    source = _DGXC.format("llama3.1/README.md").replace("24.09-24.12", "25.10")
    for gpus, batch, seconds in ((128, 64, 9.347), (256, 128, 9.479)):
        setup = _megatron(large, gpus, batch, tp=4, pp=8, cp=2, chunks=8)
        yield PublishedRun("llama3 405b", source, "GB200", setup, seconds)
    source = _DGXC.format("nemotron4-340b/README.md").replace("24.09-24.12", "25.10")
    nemotron = SHAPES["nemotron4-340b"]
    setup = _megatron(nemotron, 128, 512, tp=8, pp=4, chunks=12, precision="float8")
    yield PublishedRun("nemotron 340b", source, "B200", setup, 21.542)
    setup = _megatron(nemotron, 256, 64, tp=8, pp=8, chunks=12)
    yield PublishedRun("nemotron 340b", source, "H100", setup, 4.31)


def _torchtitan() -> Iterator[PublishedRun]:
    small, middle = SHAPES["llama3-8b"], SHAPES["llama3-70b"]
    # its selective policy recomputes every second product: key, attention output, up: 4.75 of 13
    titan = TrainingSetup(
        small, Layout(data=8), 16, 2, checkpointing="selective", recomputed_share=4.75 / 13
    )
    for gpus, rates in ((8, (5762, 6667, 8532)), (128, (5605, 6514, 8380))):
        base = replace(titan, layout=Layout(data=gpus), global_batch=2 * gpus)
        compiled = replace(base, kernels="compiled")
        setups = (base, compiled, replace(compiled, precision="float8"))
        for setup, rate, how in zip(setups, rates, ("", " compiled", " compiled"), strict=True):
            yield _from_rate(f"llama3 8b{how}", _TITAN, "H100-500W", setup, rate)
    compiled = replace(titan, kernels="compiled")
    tensor = replace(compiled, layout=Layout(data=8, tensor=8), global_batch=96, micro_batch=12)
    whole = replace(
        tensor,
        shape=middle,
        layout=Layout(data=32, tensor=8),
        global_batch=512,
        micro_batch=16,
        checkpointing="full",
        recomputed_share=None,
    )
    for setup, name, source, plain, hidden in (
        (tensor, "llama3 8b tp", _ASYNC, 4378, 4809),
        (whole, "llama3 70b", _ASYNC, 597, 652),
        (replace(whole, precision="float8"), "llama3 70b", _TITAN, 829, 876),
    ):
        yield _from_rate(name, source, "H100-500W", setup, plain)
        overlapped = replace(setup, overlaps_tensor=True)
        yield _from_rate(f"{name} async", source, "H100-500W", overlapped, hidden)
    for gpus, rate in ((32, 10938), (64, 10753)):
        setup = replace(
            compiled, layout=Layout(data=gpus), global_batch=2 * gpus, precision="float8"
        )
        yield _from_rate("llama3 8b compiled", _H200, "H200", setup, rate)


def _nanotron() -> Iterator[PublishedRun]:
    for columns, (layers, hidden, ffn, name) in zip(
        zip(*_NANOTRON_BEST, strict=True),
        (
            (16, 2048, 8192, "1.34b"),
            (28, 3072, 8192, "3.57b"),
            (32, 4096, 14336, "8.86b"),
            (80, 8192, 28672, "80b"),
        ),
        strict=True,
    ):
        heads = 64 if hidden == 8192 else 32
        shape = ModelShape(
            layers, hidden, heads, heads, hidden // heads, ffn, 131072, 4096, ffn < 10000
        )
        for cell in columns:
            if cell is None:
                continue
            data, tensor, pipeline, accumulated, micro, zero, mfu = cell
            setup = TrainingSetup(
                shape,
                Layout(tensor=tensor, data=data, pipeline=pipeline),
                data * accumulated * micro,
                micro,
                sharding="zero1" if zero else "ddp",
                overlaps_tensor=True,
            )
            run = _from_mfu(f"nanotron {name}", _NANOTRON, "H100", setup, mfu)
            yield replace(run, counted=run.gpus <= 8)


_Cell = tuple[int, int, int, int, int, int, float] | None
_NANOTRON_BEST: tuple[tuple[_Cell, ...], ...] = (
    # Cells: data, tensor, pipeline, accumulated, micro-batch, ZeRO stage, MFU. Rows: 64 nodes to 1.
    # The first cell is left out: torch rejects its layout (one micro-batch on two stages, 5.25 %).
    (None, (128, 4, 1, 1, 2, 1, 10.49), (128, 4, 1, 1, 2, 0, 18.69), (32, 16, 1, 4, 2, 1, 17.79)),
    (
        (64, 4, 1, 1, 4, 0, 23.20),
        (64, 4, 1, 1, 4, 0, 26.77),
        (32, 8, 1, 1, 8, 0, 32.71),
        (4, 4, 16, 64, 1, 1, 30.75),
    ),
    (
        (64, 2, 1, 1, 4, 0, 29.46),
        (32, 4, 1, 1, 8, 0, 34.59),
        (16, 8, 1, 2, 8, 0, 36.33),
        (1, 4, 32, 256, 1, 0, 34.29),
    ),
    (
        (32, 1, 2, 8, 1, 1, 32.47),
        (32, 1, 2, 8, 1, 1, 35.53),
        (32, 1, 2, 8, 1, 1, 39.50),
        (1, 4, 16, 256, 1, 0, 30.65),
    ),
    (
        (16, 1, 2, 16, 1, 1, 38.38),
        (16, 1, 2, 8, 2, 1, 40.39),
        (16, 1, 2, 16, 1, 1, 43.31),
        (1, 8, 4, 256, 1, 0, 14.76),
    ),
    ((8, 1, 2, 32, 1, 1, 41.59), (8, 1, 2, 16, 2, 1, 43.77), (4, 4, 1, 16, 4, 1, 43.94), None),
    ((4, 1, 2, 16, 4, 1, 44.32), (4, 1, 2, 32, 2, 1, 46.68), (2, 1, 4, 128, 1, 1, 45.22), None),
)


def _megatron_lm() -> Iterator[PublishedRun]:
    """Yield runs with tensor and sequence parallelism and selective recomputation.

    They do not use flash attention.
    """
    for name, layers, hidden, heads, pipeline, chunks, batch, micro, mfu in (
        ("22b", 48, 6144, 64, 1, 1, 4, 4, 41.5),
        ("175b", 96, 12288, 96, 8, 3, 64, 1, 51.4),
        ("530b", 105, 20480, 128, 35, 3, 280, 1, 56.0),
        ("1t", 128, 25600, 160, 64, 1, 512, 1, 56.3),
    ):
        setup = replace(
            _megatron(
                gpt(layers, hidden, heads, vocab=51200),
                8 * pipeline,
                batch,
                tp=8,
                pp=pipeline,
                chunks=chunks,
                micro=micro,
            ),
            checkpointing="selective",
            flash_attention=False,
            overlaps_tensor=False,
        )
        yield _from_mfu(f"gpt {name}", _KORTHIKANTI, "A100-80", setup, mfu)


def _foundry() -> Iterator[PublishedRun]:
    """Yield runs of FSDP on one or more nodes of A100, with flash attention and eager kernels."""
    shapes = {
        "7b": gpt(32, 4096, 32, vocab=50368),
        "13b": gpt(40, 5120, 40, vocab=50368),
        "30b": gpt(48, 7168, 56, vocab=50368),
        "70b": gpt(64, 8192, 64, vocab=50368),
        "3b": gpt(32, 2560, 20, vocab=50368),
    }
    for name, length, gpus, micro, accumulated, full, rate in (
        ("70b", 2048, 64, 8, 4, True, 410),
        ("70b", 2048, 32, 2, 16, True, 373),
        ("30b", 8192, 8, 1, 21, True, 574),
        ("30b", 4096, 8, 1, 21, True, 814),
        ("30b", 2048, 8, 3, 21, True, 916),
        ("13b", 8192, 8, 5, 3, True, 1795),
        ("13b", 4096, 8, 10, 3, True, 2060),
        ("13b", 2048, 8, 2, 3, False, 2262),
        ("13b", 1024, 8, 40, 3, True, 2330),
        ("7b", 8192, 8, 8, 2, True, 3206),
        ("7b", 4096, 8, 16, 2, True, 3684),
        ("7b", 2048, 8, 6, 2, False, 4641),
        ("7b", 1024, 8, 64, 2, True, 4357),
        ("3b", 4096, 8, 5, 6, False, 9457),
        ("3b", 2048, 8, 10, 2, False, 10811),
        ("3b", 8192, 8, 3, 6, False, 7695),
    ):
        shape = replace(
            shapes[name], biases=False, sequence_length=length, learned_positions=length
        )
        setup = TrainingSetup(
            shape,
            Layout(data=gpus),
            gpus * micro * accumulated,
            micro,
            checkpointing="full" if full else "none",
            syncs_always=True,
        )
        yield _from_rate(f"mpt {name}", _FOUNDRY, "A100-80", setup, rate)
