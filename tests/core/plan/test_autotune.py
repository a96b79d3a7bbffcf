"""Which communication settings are tried, in which order, and which of them is kept."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.defaults import LEAST_GAIN, MAX_COMMUNICATION_TRIALS
from llmtrain_core.api.status.communication import CommunicationSetting
from llmtrain_core.api.training import Training
from llmtrain_core.plan.autotune import (
    BUCKET_BYTES,
    CHUNKS,
    Choices,
    UnitBytes,
    choices,
    search,
    setting_of,
    tunable_settings,
    with_setting,
)
from llmtrain_core.plan.gradient_sync import EXACT_SYNC, SyncScheme, messages

pytestmark = pytest.mark.unit

MIB = 1 << 20
LARGE = UnitBytes(median=3 * MIB, largest=8 * MIB, total=200 * MIB)
EVERYTHING = frozenset({"replicas_per_rack", "overlap", "bucket_bytes", "chunks"})


def tune(
    start: SyncScheme, tried: Choices, cost: Callable[[SyncScheme], float]
) -> tuple[SyncScheme, list[SyncScheme]]:
    """Return the setting that is kept, and all that were tried."""
    seconds: dict[SyncScheme, float] = {}
    best, following = search(start, tried, seconds)
    while following is not None:
        assert following not in seconds
        seconds[following] = cost(following)
        best, following = search(start, tried, seconds)
    return best, list(seconds)


def training(**communication: Any) -> Training:
    return Training.from_wire(
        {"steps": 9, "globalBatchSize": 8, "communication": {"autotune": True, **communication}}
    )


def test_the_fastest_of_independent_settings_is_kept() -> None:
    tried = choices(EVERYTHING, EXACT_SYNC, 8, LARGE)
    wanted = SyncScheme(replicas_per_rack=4, overlap=True, bucket_bytes=BUCKET_BYTES[1], chunks=2)

    def cost(sync: SyncScheme) -> float:
        fields = ("replicas_per_rack", "overlap", "bucket_bytes", "chunks")
        return 1.0 + sum(getattr(sync, name) != getattr(wanted, name) for name in fields)

    best, order = tune(EXACT_SYNC, tried, cost)
    assert best == wanted
    assert order[0] == EXACT_SYNC
    assert [sync.replicas_per_rack for sync in order[:3]] == [1, 2, 4]
    assert all(sync.replicas_per_rack == 4 for sync in order[3:])


def test_a_gain_within_the_noise_changes_nothing() -> None:
    tried = choices(EVERYTHING, EXACT_SYNC, 8, LARGE)
    noise = random.Random(3)
    best, _ = tune(EXACT_SYNC, tried, lambda sync: 1.0 - noise.uniform(0.0, LEAST_GAIN) * 0.99)
    assert best == EXACT_SYNC
    best, _ = tune(EXACT_SYNC, tried, lambda sync: 1.0 - 1.5 * LEAST_GAIN * sync.overlap)
    assert best == replace(EXACT_SYNC, overlap=True)


def test_a_setting_without_a_time_is_never_kept() -> None:
    tried = choices(EVERYTHING, EXACT_SYNC, 4, LARGE)
    best, _ = tune(EXACT_SYNC, tried, lambda sync: float("inf") if sync.overlap else 1.0)
    assert best == EXACT_SYNC


def test_all_trials_fit_into_the_status() -> None:
    huge, longest = UnitBytes(1, 1 << 40, 1 << 41), 0
    for replicas in (2, 4, 6, 60, 64, 720, 1024):
        for start in (EXACT_SYNC, SyncScheme(replicas_per_rack=2)):
            tried = choices(EVERYTHING, start, replicas, huge)
            assert all(replicas % size == 0 for size in tried.replicas_per_rack)
            # the worst case: each later setting is faster
            _, order = tune(start, tried, _falling())
            assert len(order) <= MAX_COMMUNICATION_TRIALS
            longest = max(longest, len(order))
    assert longest == 11, "docs/trainer.md has the number of steps that they take: 4 each, and 1"


def _falling() -> Callable[[SyncScheme], float]:
    left = iter(0.5**number for number in range(99))
    return lambda sync: next(left)


def test_racks_of_the_job_are_the_only_ones() -> None:
    start = SyncScheme(replicas_per_rack=4)
    assert choices(EVERYTHING, start, 16, LARGE).replicas_per_rack == (1, 4)
    assert choices(EVERYTHING, EXACT_SYNC, 2, LARGE).replicas_per_rack == (1,)
    assert choices(EVERYTHING, EXACT_SYNC, 6, LARGE).replicas_per_rack == (1, 2, 3)


def test_buckets_join_units() -> None:
    tiny = UnitBytes(median=1000, largest=2000, total=9000)
    assert choices(EVERYTHING, EXACT_SYNC, 4, tiny).bucket_bytes == BUCKET_BYTES[:1]
    one_unit = UnitBytes(1000, 1000, 1000)
    assert choices(EVERYTHING, EXACT_SYNC, 4, one_unit).bucket_bytes == ()
    wide = UnitBytes(100 * MIB, 200 * MIB, 900 * MIB)
    assert choices(EVERYTHING, EXACT_SYNC, 4, wide).bucket_bytes == ()
    assert choices(EVERYTHING, EXACT_SYNC, 4, LARGE).bucket_bytes == BUCKET_BYTES
    assert choices(EVERYTHING, EXACT_SYNC, 4, LARGE).chunks == CHUNKS
    assert choices(EVERYTHING, EXACT_SYNC, 4, tiny).chunks == ()


@pytest.mark.parametrize(
    ("given", "fixed"),
    [
        ({}, set()),
        ({"overlap": True}, {"overlap"}),
        ({"overlap": False}, {"overlap", "bucket_bytes"}),
        ({"overlap": True, "bucketSize": "1Mi"}, {"overlap", "bucket_bytes"}),
        ({"chunks": 1}, {"chunks"}),
        ({"autotune": False}, EVERYTHING),
    ],
)
def test_settings_of_the_job_are_not_tried(given: dict[str, Any], fixed: set[str]) -> None:
    assert EVERYTHING - tunable_settings(training(**given)) == fixed


def test_the_scheme_of_a_job() -> None:
    made = SyncScheme.of(training(autotune=False, overlap=True, bucketSize="1500k", chunks=3))
    assert made == SyncScheme(overlap=True, bucket_bytes=1_500_000, chunks=3)
    assert SyncScheme.of(training()) == EXACT_SYNC


def test_a_setting_from_a_file_has_to_suit_the_job() -> None:
    sync = SyncScheme("int8", replicas_per_rack=2, overlap=True, bucket_bytes=5, chunks=4)
    assert with_setting(SyncScheme("int8"), setting_of(sync), 4) == sync
    assert with_setting(EXACT_SYNC, CommunicationSetting(copies_per_rack=3), 4) is None
    assert with_setting(EXACT_SYNC, CommunicationSetting(bucket_bytes=3), 4) is None


def test_messages_have_all_values_once() -> None:
    random_ = random.Random(1)
    for _ in range(200):
        units = [random_.randint(1, 5000) for _ in range(random_.randint(1, 9))]
        sync = SyncScheme(
            overlap=True, bucket_bytes=random_.choice((0, 1, 9000)), chunks=random_.randint(1, 5)
        )
        found = list(messages(sync, units, 4))
        assert sum(found) == sum(units) and min(found) > 0
        assert len(found) <= len(units) * sync.chunks
    assert list(messages(EXACT_SYNC, [300, 7], 4)) == [300, 7]
    assert list(messages(SyncScheme(chunks=2), [1000], 4)) == [512, 488]
    joined = SyncScheme(overlap=True, bucket_bytes=4000)
    assert list(messages(joined, [900, 50, 50, 7], 4)) == [1000, 7]
