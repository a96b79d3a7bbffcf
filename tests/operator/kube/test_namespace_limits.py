"""The tasks and writes of one namespace do not delay those of another."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from llmtrain_operator.kube import namespace_limits
from llmtrain_operator.kube.namespace_limits import (
    JOB_WRITES,
    FairTurns,
    NamespaceGate,
    Rotation,
    StartTurns,
    WriteLimiter,
)

pytestmark = pytest.mark.unit


def test_keys_take_turns() -> None:
    queue: Rotation[str] = Rotation()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.push(item[0], item)
    assert len(queue) == 6
    assert [queue.pop() for _ in range(6)] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert not queue


async def test_a_newcomer_waits_for_one_turn_of_a_thousand_tasks() -> None:
    turns, order = FairTurns(1), list[str]()

    async def work(namespace: str) -> None:
        async with turns.take(namespace):
            order.append(namespace)
            if len(order) == 10:
                tasks.append(asyncio.create_task(work("new")))

    tasks = [asyncio.create_task(work("busy")) for _ in range(1000)]
    while len(order) < 1001:
        await asyncio.sleep(0)
    assert 10 <= order.index("new") <= 12
    await asyncio.gather(*tasks)


async def test_the_number_of_turns_at_a_time_is_limited() -> None:
    turns, held, most = FairTurns(3), 0, 0

    async def work() -> None:
        nonlocal held, most
        async with turns.take("ns"):
            held += 1
            most = max(most, held)
            await asyncio.sleep(0.001)
            held -= 1

    await asyncio.gather(*(work() for _ in range(20)))
    assert (held, most) == (0, 3)


async def test_a_turn_comes_back_after_an_error_and_a_cancellation() -> None:
    turns = FairTurns(1)
    with pytest.raises(ZeroDivisionError):
        async with turns.take("ns"):
            raise ZeroDivisionError

    async def hold(entered: asyncio.Event) -> None:
        async with turns.take("ns"):
            entered.set()
            await asyncio.sleep(1e6)

    first, second = asyncio.Event(), asyncio.Event()
    holder = asyncio.create_task(hold(first))
    await first.wait()
    waiter = asyncio.create_task(hold(second))
    await asyncio.sleep(0.01)
    for task in (waiter, holder):
        task.cancel()
    await asyncio.wait([waiter, holder])
    assert not second.is_set()
    async with asyncio.timeout(60), turns.take("other"):
        pass


async def test_a_turn_that_was_granted_to_a_cancelled_task_comes_back() -> None:
    turns = FairTurns(1)
    entered = asyncio.Event()

    async def hold() -> None:
        async with turns.take("ns"):
            entered.set()

    task = asyncio.create_task(hold())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    async with asyncio.timeout(60), turns.take("other"):
        pass


async def test_writes_of_namespaces_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(namespace_limits, "time", clock)
    limiter, order = WriteLimiter(200), list[str]()
    for _ in range(400):
        await limiter.acquire("busy")

    async def write(namespace: str) -> None:
        await limiter.acquire(namespace)
        order.append(namespace)

    tasks = [asyncio.create_task(write(name)) for name in (*["busy"] * 50, "new")]
    cancelled = asyncio.create_task(write("cancelled"))
    await asyncio.sleep(0)
    cancelled.cancel()
    while len(order) < len(tasks):
        now += 1 / 200
        await asyncio.sleep(1 / 200)
    assert order.count("busy") == 50 and order.index("new") <= 1


async def test_a_rate_below_one_write_in_two_seconds_permits_writes() -> None:
    async with asyncio.timeout(10):
        await WriteLimiter(0.1).acquire("ns")


async def test_each_namespace_has_its_own_gate() -> None:
    gate, release = NamespaceGate(2), asyncio.Event()
    running: list[str] = []

    async def write(namespace: str) -> None:
        async with gate.enter(namespace):
            running.append(namespace)
            await release.wait()

    tasks = [asyncio.create_task(write(name)) for name in (*["mallory"] * 5, "bob")]
    await asyncio.sleep(0.01)
    assert sorted(running) == ["bob", "mallory", "mallory"]
    tasks[4].cancel()
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(running) == ["bob", *["mallory"] * 4]
    assert len(gate) == 0


async def test_few_jobs_of_a_namespace_are_written_at_the_same_time() -> None:
    limiter, release = WriteLimiter(200), asyncio.Event()
    running: list[str] = []

    async def write(namespace: str) -> None:
        async with limiter.job_write(namespace):
            running.append(namespace)
            await release.wait()

    tasks = [asyncio.create_task(write(name)) for name in (*["mallory"] * 10, "bob")]
    await asyncio.sleep(0.01)
    assert sorted(running) == ["bob", *["mallory"] * JOB_WRITES]
    await limiter.acquire("mallory")  # other writes do not wait for them
    release.set()
    await asyncio.gather(*tasks)
    assert len(running) == 11


async def test_jobs_start_one_after_the_other_and_namespaces_take_turns() -> None:
    woken: list[str] = []
    turns = StartTurns(2, woken.append, seconds=1e6)
    jobs = ["a1", "a2", "a3", "a4", "b1"]
    assert [turns.take(uid, uid[0]) for uid in jobs] == [True, True, False, False, False]
    assert [turns.take(uid, uid[0]) for uid in jobs] == [True, True, False, False, False]
    assert woken == [], "who has a turn at once is not woken"
    for ended in ("a2", "a1", "a3"):
        turns.end(ended)
    assert woken == ["a3", "b1", "a4"]
    assert turns.take("b1", "b") and not turns.take("a1", "a")
    for uid in (*jobs, "a1", "unknown"):
        turns.end(uid)
    assert woken == ["a3", "b1", "a4"], "the request of a1 is withdrawn"
    assert [turns.take(uid, "c") for uid in ("c1", "c2", "c3")] == [True, True, False]


async def test_a_slow_job_leaves_its_turn_and_may_ask_again() -> None:
    woken: list[str] = []
    turns = StartTurns(1, woken.append, seconds=0.01)
    assert turns.take("slow", "a") and not turns.take("next", "b")
    async with asyncio.timeout(60):
        while not woken:
            await asyncio.sleep(0.005)
    assert woken[0] == "next"
    turns.end("next")
    assert turns.take("slow", "a")
