"""The usual transfer time of a group, and deviations from it."""

from math import exp

import pytest

from llmtrain_core.network.links import Group
from llmtrain_core.network.transfer_times import (
    LEAST_BLOCKS,
    MAX_BLOCKS,
    MAX_LEFT_OUT,
    History,
    JobTimes,
    SampleBlock,
    block_of,
    record,
)

GROUP = Group("dp", 0, frozenset({("a",), ("b",)}))

pytestmark = pytest.mark.unit


def times_of(*seconds: float, what: str = "probe", error: float = 0.02) -> JobTimes:
    times = JobTimes("job")
    for each in seconds:
        times = record(times, [(what, "job dp0", GROUP, SampleBlock(each, error))])
    return times


def test_spikes_do_not_change_a_block() -> None:
    calm = block_of([1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0, 1.0])
    spiked = block_of([1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 5.0, 1.0, 7.0])
    assert spiked.seconds == pytest.approx(calm.seconds, rel=0.01)
    assert spiked.error < 0.05


@pytest.mark.parametrize("samples", [[], [1.0, 0.0], [-1.0]])
def test_a_time_is_positive(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="above 0 seconds"):
        block_of(samples)


def test_a_few_blocks_say_nothing() -> None:
    assert times_of(*[1.0] * (LEAST_BLOCKS - 1)).observations() == []
    assert len(times_of(*[1.0] * LEAST_BLOCKS).observations()) == 1


def test_recent_blocks_are_compared_with_the_usual_ones() -> None:
    (found,) = times_of(*[1.0] * 8, 2.0, 2.0).observations()
    assert exp(found.log_ratio) == pytest.approx(2.0)
    assert (found.job, found.label, found.links) == ("job", "dp", GROUP.links)


def test_one_slow_block_counts_half() -> None:
    (found,) = times_of(*[1.0] * 8, 4.0).observations()
    assert exp(found.log_ratio) == pytest.approx(2.0)


def test_the_operation_with_the_least_error_counts() -> None:
    noisy = [("all_gather", "job dp0", GROUP, SampleBlock(1.0, 0.2))] * 8
    times = times_of(*[1.0] * 8, 3.0, 3.0)
    for block in noisy:
        times = record(times, [block])
    (found,) = times.observations()
    assert exp(found.log_ratio) == pytest.approx(3.0)


def test_old_blocks_are_forgotten() -> None:
    history = History(GROUP)
    for number in range(MAX_BLOCKS + 5):
        history = history.add(SampleBlock(1.0 + number, 0.02))
    assert len(history.blocks) == MAX_BLOCKS
    assert history.blocks[0].seconds == 6.0


def pair(times: JobTimes, count: int, first: float, second: float) -> JobTimes:
    """Record the blocks of two groups."""
    for _ in range(count):
        blocks = [("dp0", first), ("dp2", second)]
        times = record(
            times, [("all", name, GROUP, SampleBlock(each, 0.02)) for name, each in blocks]
        )
    return times


def ratios(times: JobTimes) -> list[float]:
    return [exp(each.log_ratio) for each in times.observations()]


def test_bandwidth_that_a_slow_group_leaves_to_another_one_is_not_usual() -> None:
    slow = pair(pair(JobTimes("job"), 5, 1.0, 1.0), 10, 6.0, 0.4)
    assert ratios(slow) == pytest.approx([6.0, 0.4])
    assert ratios(pair(slow, 2, 1.0, 1.0)) == pytest.approx([1.0, 1.0])


def test_groups_that_become_faster_together_are_usual() -> None:
    faster = pair(pair(JobTimes("job"), 5, 1.0, 1.0), 20, 0.5, 0.5)
    assert ratios(faster) == pytest.approx([1.0, 1.0])


def test_a_group_that_is_faster_for_good_is_usual_in_the_end() -> None:
    """A link that was slow from the start is repaired, and takes bandwidth from the other group."""
    repaired = pair(pair(JobTimes("job"), 20, 6.0, 0.4), MAX_LEFT_OUT + 20, 1.0, 1.0)
    assert ratios(repaired)[0] == pytest.approx(1.0)
    assert ratios(pair(repaired, 2, 3.0, 1.0))[0] == pytest.approx(3.0)


def test_noise_of_other_groups_leaves_no_block_out() -> None:
    times = JobTimes("job")
    for number in range(30):
        noisy = [(f"dp{n}", 1.25 if (n + number) % 40 == 0 else 1.0) for n in range(2, 42)]
        blocks = [("dp0", 1.0 if number < 6 else 0.6), *noisy]
        times = record(
            times, [("all", name, GROUP, SampleBlock(each, 0.05)) for name, each in blocks]
        )
    assert ratios(times)[0] == pytest.approx(1.0)
