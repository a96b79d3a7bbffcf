"""What the pod exports of collectives: without scalars, with quantiles, in two levels of detail."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llmtrain_trainer.metrics.devices import DeviceName, DeviceUse
from llmtrain_trainer.metrics.registry import TrainingMetrics
from llmtrain_trainer.runtime.pod_env import MetricsDetail
from llmtrain_trainer.runtime.reports import CheckpointReport, CollectiveSample, StepReport

pytestmark = pytest.mark.unit

HIDDEN = 10**6
GROUP = {"group": "tp", "op": "all_reduce"}
WAITS = {"group": "tp", "payload": "tensor"}
DURATIONS = ("collective_seconds", "collective_wait_seconds", "step_phase_seconds")


def _observe(metrics: TrainingMetrics, *collectives: CollectiveSample) -> None:
    step = StepReport(1, 0.5, {"data": 0.1, "clip": 0.2}, 512, 6.5, 1.0, 0.01, collectives, 1.0)
    metrics.observe_rank_step(step, gpu=0)


def _sample(seconds: Sequence[float], waits: Sequence[float] = ()) -> CollectiveSample:
    return CollectiveSample(
        **GROUP,
        payloads=(HIDDEN,) * len(seconds),
        group_size=2,
        seconds=tuple(seconds),
        waits=tuple(waits),
    )


def _families(metrics: TrainingMetrics) -> dict[str, Metric]:
    page = metrics.exposition().decode()
    found = text_string_to_metric_families(page)
    return {family.name.removeprefix("llmtrain_"): family for family in found}


def _values(metrics: TrainingMetrics, name: str, **labels: str) -> list[float]:
    """Values of the samples with a name that have all these labels."""
    samples = (sample for family in _families(metrics).values() for sample in family.samples)
    return [
        sample.value
        for sample in samples
        if sample.name == f"llmtrain_{name}" and labels.items() <= sample.labels.items()
    ]


RANDOM = np.random.default_rng(7)
DISTRIBUTIONS = {
    "uniform": RANDOM.uniform(1e-4, 2e-3, 1000),
    "lognormal": RANDOM.lognormal(-7, 1.5, 1000),
    "exponential": RANDOM.exponential(0.05, 1000),
    "one call of fifty is slow": np.where(RANDOM.random(1000) < 0.02, 0.3, 1e-3),
    "slower and slower": np.linspace(1e-5, 4.0, 1000),
    "constant": np.full(1000, 0.02),
    "longer than the last bucket": RANDOM.uniform(10, 900, 1000),
    "few": RANDOM.lognormal(-7, 1.5, 5),
    "one": np.array([0.25]),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_quantiles_are_those_of_the_last_256_calls(name: str) -> None:
    seconds = DISTRIBUTIONS[name]
    metrics = TrainingMetrics()
    for step in np.array_split(seconds, 7):
        _observe(metrics, _sample(step.tolist()))
    for fraction in (0.5, 0.99):
        labels = {**GROUP, "quantile": str(fraction)}
        [found] = _values(metrics, "collective_recent_seconds", **labels)
        assert found == pytest.approx(np.quantile(seconds[-256:], fraction), rel=1e-9)
    assert _values(metrics, "collective_seconds_count", **GROUP) == [len(seconds)]


def test_scalars_count_in_waits_of_their_own_only() -> None:
    mixed = CollectiveSample(
        **GROUP,
        payloads=(8, HIDDEN, 64, HIDDEN),
        group_size=2,
        seconds=(0.5, 0.002, 0.5, 0.003),
        waits=(0.4, 0.0, 0.4, 0.001),
    )
    scalars = CollectiveSample("dp", "all_reduce", (8, 8), 2, (0.5, 0.5), (0.0, 0.25))
    transfers = CollectiveSample("pp", "send", (8, HIDDEN), 2, ())
    metrics = TrainingMetrics()
    _observe(metrics, mixed, scalars, transfers)
    assert _values(metrics, "collective_seconds_sum", **GROUP) == [pytest.approx(0.005)]
    assert _values(metrics, "collective_seconds_count") == [2]
    assert max(_values(metrics, "collective_recent_seconds")) < 0.003
    assert _values(metrics, "sampled_collective_bytes_total", **GROUP) == [2 * HIDDEN]
    assert _values(metrics, "sampled_collective_bytes_total", group="pp") == [HIDDEN]
    # an all-reduce of two ranks moves its payload once; without the wait of a millisecond
    assert _values(metrics, "bus_bandwidth_bytes_per_second") == [pytest.approx(HIDDEN / 0.002)]
    assert _values(metrics, "collective_wait_seconds_sum", **WAITS) == [pytest.approx(0.001)]
    scalar = {**WAITS, "payload": "scalar"}
    assert _values(metrics, "collective_wait_seconds_sum", **scalar) == [pytest.approx(0.8)]
    assert _values(metrics, "collective_wait_seconds_sum", group="dp") == [0.25]
    assert not _values(metrics, "collective_wait_seconds_sum", group="dp", payload="tensor")
    assert not _values(metrics, "sampled_collective_bytes_total", group="dp")
    assert (mixed.count, mixed.nbytes) == (4, 2 * HIDDEN + 72)


def test_bytes_of_a_step_are_the_ratio_of_two_counters() -> None:
    metrics = TrainingMetrics()
    for _ in range(3):
        _observe(metrics, _sample([0.1, 0.1]))
    metrics.observe_rank_step(StepReport(2, 0.5, {}, 512, 6.5, 1.0, 0.01), gpu=0)
    [nbytes] = _values(metrics, "sampled_collective_bytes_total", **GROUP)
    [steps] = _values(metrics, "sampled_steps_total")
    assert nbytes / steps == 2 * HIDDEN
    assert _values(metrics, "step_seconds_count") == [4]


def _everything(detail: MetricsDetail) -> TrainingMetrics:
    metrics = TrainingMetrics(detail)
    metrics.start_job_counters()
    metrics.set_device_names([DeviceName("GPU-0", 'a "model"\\\n')])
    metrics.observe_devices("nvml", [DeviceUse(0, 0.5, {"used": 7 * 10**10}, {"sm": 0.8}, 1e6)])
    metrics.observe_checkpoint(CheckpointReport(1, {"stage": 0.1}))
    _observe(metrics, _sample([1e-5, 0.1], [0.0, 0.05]))
    return metrics


def test_full_detail_has_histograms() -> None:
    basic, full = (_families(_everything(detail)) for detail in ("basic", "full"))
    assert basic.keys() == full.keys()
    for name in DURATIONS:
        assert (basic[name].type, full[name].type) == ("summary", "histogram")
        totals = [
            {s.name: s.value for s in found[name].samples if not s.name.endswith("_bucket")}
            for found in (basic, full)
        ]
        assert totals[0] == totals[1]
        assert {s.name for s in basic[name].samples} == {
            f"llmtrain_{name}_sum",
            f"llmtrain_{name}_count",
        }


def test_each_bucket_is_twice_the_one_before() -> None:
    histograms = [
        each for each in _families(_everything("full")).values() if each.type == "histogram"
    ]
    assert {each.name.removeprefix("llmtrain_") for each in histograms} == {
        "step_seconds",
        "checkpoint_seconds",
        *DURATIONS,
    }
    for family in histograms:
        bounds = sorted({float(s.labels["le"]) for s in family.samples if "le" in s.labels})
        assert bounds.pop() == np.inf
        for lower, upper in itertools.pairwise(bounds):
            assert upper == pytest.approx(2 * lower)


@pytest.mark.parametrize("detail", ["basic", "full"])
def test_the_page_is_that_of_prometheus_client(detail: MetricsDetail) -> None:
    metrics = _everything(detail)
    assert _fixed(metrics.exposition()) == _fixed(generate_latest(metrics.registry))


def _fixed(page: bytes) -> list[bytes]:
    """Return the lines, without the values of the process, which change at any time."""
    return [
        line.split(b" ")[0] if line.startswith(b"process_") else line for line in page.splitlines()
    ]
