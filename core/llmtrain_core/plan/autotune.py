"""Which communication settings to try on a placement, and which of them is the fastest.

One setting is varied at a time, with the fastest values of those before it: first between which
replicas gradients are summed, then when, in which messages, and in how many parts. All settings
transfer the same gradients with the same compression and precision. `overlap` gives the same sums,
bit for bit. The others change the order in which numbers are added, so the last bits of a sum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from llmtrain_core.api.defaults import LEAST_GAIN
from llmtrain_core.api.status.communication import CommunicationSetting
from llmtrain_core.api.training import Training
from llmtrain_core.plan.gradient_sync import SyncScheme

MAX_RACK_SIZES = 4
"""Sizes of racks that are tried at most, if the job does not name one."""
BUCKET_BYTES = (4 << 20, 16 << 20, 64 << 20)
CHUNKS = (2, 4)
LEAST_CHUNK_BYTES = 64 << 10
"""Smaller parts take the latency of the network, not its bandwidth."""


@dataclass(frozen=True, slots=True)
class UnitBytes:
    """Bytes of the gradients of an FSDP unit on one rank, the largest of all ranks."""

    median: int
    largest: int
    total: int
    """Of all units of a rank."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Values of each setting that are tried."""

    replicas_per_rack: tuple[int, ...] = ()
    overlap: tuple[bool, ...] = ()
    bucket_bytes: tuple[int, ...] = ()
    chunks: tuple[int, ...] = ()


def tunable_settings(training: Training) -> frozenset[str]:
    """Return the fields of `SyncScheme` that autotune may change; empty if the job has none."""
    given = training.communication
    if given is None or not given.autotune:
        return frozenset()
    found = {"replicas_per_rack"}
    if given.overlap is None:
        found.add("overlap")
    if given.bucket_size is None and given.overlap is not False:
        found.add("bucket_bytes")
    if given.chunks is None:
        found.add("chunks")
    return frozenset(found)


def choices(tunable: Collection[str], sync: SyncScheme, replicas: int, units: UnitBytes) -> Choices:
    """Return what to try on a job with so many replicas."""
    return Choices(
        _rack_sizes(sync, replicas) if "replicas_per_rack" in tunable else (),
        (False, True) if "overlap" in tunable else (),
        tuple(_bucket_sizes(units)) if "bucket_bytes" in tunable else (),
        tuple(each for each in CHUNKS if units.largest >= each * LEAST_CHUNK_BYTES)
        if "chunks" in tunable
        else (),
    )


def search(
    start: SyncScheme, tried: Choices, seconds: Mapping[SyncScheme, float]
) -> tuple[SyncScheme, SyncScheme | None]:
    """Return the fastest setting so far, and the next one to try; None after the last.

    `start` is the setting of the job, and `seconds` the step times of what was tried. The earlier
    of two settings is kept unless the later one is faster by `LEAST_GAIN`.
    """
    best = start
    for number in range(4):
        options = [each for each in _round(number, best, tried) if each != best]
        if not options:
            continue
        for option in (best, *options):
            if option not in seconds:
                return best, option
        for option in options:
            if seconds[option] < (1 - LEAST_GAIN) * seconds[best]:
                best = option
    return best, None


def setting_of(sync: SyncScheme) -> CommunicationSetting:
    """Return what a status shows of a scheme."""
    return CommunicationSetting(
        copies_per_rack=sync.replicas_per_rack,
        overlap=sync.overlap,
        bucket_bytes=sync.bucket_bytes,
        chunks=sync.chunks,
    )


def with_setting(
    sync: SyncScheme, setting: CommunicationSetting, replicas: int
) -> SyncScheme | None:
    """Return the scheme of a setting from a file; None if a job cannot have it."""
    if replicas % setting.copies_per_rack or (setting.bucket_bytes and not setting.overlap):
        return None
    return replace(
        sync,
        replicas_per_rack=setting.copies_per_rack,
        overlap=setting.overlap,
        bucket_bytes=setting.bucket_bytes,
        chunks=setting.chunks,
    )


def _round(number: int, best: SyncScheme, tried: Choices) -> list[SyncScheme]:
    if number == 0:
        return [replace(best, replicas_per_rack=each) for each in tried.replicas_per_rack]
    if number == 1:
        return [replace(best, overlap=each) for each in tried.overlap]
    if number == 2:
        return [replace(best, overlap=True, bucket_bytes=each) for each in tried.bucket_bytes]
    return [replace(best, chunks=each) for each in tried.chunks]


def _rack_sizes(sync: SyncScheme, replicas: int) -> tuple[int, ...]:
    """Return one, and sizes of racks of equal size: that of the job, or some of all."""
    if sync.replicas_per_rack > 1:
        return 1, sync.replicas_per_rack
    sizes = [each for each in range(2, replicas // 2 + 1) if replicas % each == 0]
    if len(sizes) > MAX_RACK_SIZES:
        last = MAX_RACK_SIZES - 1
        sizes = [sizes[number * (len(sizes) - 1) // last] for number in range(MAX_RACK_SIZES)]
    return 1, *sizes


def _bucket_sizes(units: UnitBytes) -> Iterator[int]:
    """Yield the sizes that join units. From the first one on that has all, messages are equal."""
    for each in BUCKET_BYTES:
        if each > units.median and units.median < units.total:
            yield each
        if each >= units.total:
            return
