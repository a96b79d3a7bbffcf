"""The reconcile loops of all jobs start once, end with their job, and survive their own errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from llmtrain_operator.reconcile import loops as module
from llmtrain_operator.reconcile.loops import ReconcileLoops

pytestmark = pytest.mark.unit


class FakeLoop:
    """A loop that ends when it is woken."""

    def __init__(self, uid: str, ended: list[str], error: BaseException | None = None):
        self.uid = uid
        self.wake = asyncio.Event()
        self.stopping = False
        self._ended = ended
        self._error = error

    async def run(self) -> None:
        await self.wake.wait()
        if self._error is not None:
            raise self._error
        self._ended.append(self.uid)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


async def test_one_loop_for_each_job() -> None:
    made: list[FakeLoop] = []
    ended: list[str] = []

    def make(uid: str) -> FakeLoop:
        made.append(FakeLoop(uid, ended))
        return made[-1]

    loops = ReconcileLoops(make)
    for uid in ("a", "b", "a"):
        loops.start(uid)
    assert [loop.uid for loop in made] == ["a", "b"] and len(loops) == 2
    loops.wake("a")
    loops.wake("unknown")
    await until(lambda: ended == ["a"])
    loops.start("a")
    assert len(made) == 3, "a loop that has ended starts again"
    await until(lambda: len(loops) == 2)
    await loops.stop()
    assert sorted(ended) == ["a", "a", "b"] and len(loops) == 0
    assert all(loop.stopping for loop in made[1:])
    loops.start("c")
    assert len(made) == 3, "nothing starts at the end of the process"


@pytest.mark.parametrize("error", [AttributeError("a defect"), asyncio.CancelledError()])
async def test_a_loop_that_fails_starts_again(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_SECONDS", 0.0)
    made: list[FakeLoop] = []

    def make(uid: str) -> FakeLoop:
        made.append(FakeLoop(uid, [], None if made else error))
        return made[-1]

    loops = ReconcileLoops(make)
    loops.start("a")
    loops.wake("a")
    await until(lambda: len(made) == 2)
    assert len(loops) == 1
    await loops.stop()


async def test_a_loop_that_does_not_end_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.01)

    class Endless(FakeLoop):
        async def run(self) -> None:
            await asyncio.Event().wait()

    loops = ReconcileLoops(lambda uid: Endless(uid, []))
    loops.start("a")
    await loops.stop()
    await asyncio.sleep(0)
    assert len(loops) == 0
