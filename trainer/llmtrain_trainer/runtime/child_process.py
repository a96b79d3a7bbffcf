"""Child processes of the launcher: forked, with a pipe for results, killed with the launcher."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import signal
import stat
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Entry = Callable[[Callable[[Any], None]], int]
"""Runs in the child: takes a function that sends a value to the parent, returns the exit code."""

_CONTEXT = multiprocessing.get_context("fork")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


class ChildProcess:
    """One forked process. Create it on the thread of the event loop, with no other thread."""

    def __init__(
        self,
        name: str,
        entry: Entry,
        on_value: Callable[[Any], None],
        sockets: Sequence[int] = (),
    ) -> None:
        """Fork; the child closes all sockets of the launcher but `sockets`.

        A child may end a moment after its parent and would keep ports and connections open.
        """
        self._on_value = on_value
        self._receive, send = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(
            target=_enter,
            args=(entry, send, os.getpid(), tuple(sockets)),
            name=name,
            daemon=True,
        )
        # until the child resets its handlers, a signal to it would go to the parent's wake-up pipe
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        send.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid or 0

    async def wait(self) -> int:
        """Deliver values until the process has ended; return its exit code, or minus its signal."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._receive.fileno(), self._deliver, loop)
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
            loop.remove_reader(self._receive.fileno())
        self._deliver(loop)
        self._process.join()
        return self._process.exitcode or 0

    @property
    def stopped(self) -> bool:
        """Whether a signal has suspended the process."""
        return _state(self.pid) in ("T", "t")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process if it still runs."""
        if self._process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def stop(self, grace: float) -> None:
        """End the process: SIGTERM, then SIGKILL after `grace` seconds."""
        deadline = asyncio.get_running_loop().time() + grace
        self.signal(signal.SIGTERM)
        while self._process.is_alive():
            if asyncio.get_running_loop().time() > deadline:
                self.signal(signal.SIGKILL)
            await asyncio.sleep(0.02)
        self._process.join()

    def _deliver(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._receive.poll():
                self._on_value(self._receive.recv())
        except (EOFError, OSError):
            loop.remove_reader(self._receive.fileno())


def _enter(entry: Entry, send: Connection, parent: int, sockets: Sequence[int]) -> None:
    """Run in the child: reset what was inherited from the launcher, then run the entry."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole process group
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    die_with_parent(parent)
    _close_other_sockets(sockets)
    lock = threading.Lock()  # a rank sends from its training loop and from its stack reporter

    def send_value(value: Any) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            send.send(value)

    code = entry(send_value)
    send.close()
    # skip interpreter shutdown: torch's threads, and copies of the launcher's objects, still exist
    os._exit(code)


def _close_other_sockets(kept: Sequence[int]) -> None:
    for path in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(path.name)
        try:
            if descriptor not in kept and stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.close(descriptor)
        except OSError:
            continue  # the descriptor of the listing itself


def _state(pid: int) -> str:
    """Return the state of a process as a letter, as in proc(5); empty if it does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent ends for any reason."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
