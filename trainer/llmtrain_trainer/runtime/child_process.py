"""Child processes of the launcher: forked, heard through a pipe, never outliving it."""

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
"""What a child runs: it gets a function that sends a value up, and returns its exit code."""

_CONTEXT = multiprocessing.get_context("fork")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


class Child:
    """One forked process. Made on the event loop's thread, while it is the only thread."""

    def __init__(
        self,
        name: str,
        entry: Entry,
        on_value: Callable[[Any], None],
        sockets: Sequence[int] = (),
    ) -> None:
        """Fork; the child keeps no socket of the launcher's but `sockets`.

        A child may die a moment after its parent, and would keep ports and connections open.
        """
        self._on_value = on_value
        self._receive, send = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(
            target=_enter,
            args=(entry, send, os.getpid(), tuple(sockets)),
            name=name,
            daemon=True,
        )
        # a signal between fork and reset would be written into the parent's wake-up pipe
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
        loop.add_reader(self._receive.fileno(), self._pump, loop)
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
            loop.remove_reader(self._receive.fileno())
        self._pump(loop)
        self._process.join()
        return self._process.exitcode or 0

    @property
    def stopped(self) -> bool:
        """A signal suspended the process."""
        return _state(self.pid) in ("T", "t")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it is still there."""
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

    def _pump(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._receive.poll():
                self._on_value(self._receive.recv())
        except (EOFError, OSError):
            loop.remove_reader(self._receive.fileno())


def _enter(entry: Entry, send: Connection, parent: int, sockets: Sequence[int]) -> None:
    """Run in the child: drop what belongs to the launcher, then the entry."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    die_with_parent(parent)
    _close_sockets_but(sockets)
    lock = threading.Lock()  # a rank reports from its loop and from its witness

    def up(value: Any) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            send.send(value)

    code = entry(up)
    send.close()
    # no interpreter shutdown: torch's threads and the fork's copies of the launcher's objects
    os._exit(code)


def _close_sockets_but(kept: Sequence[int]) -> None:
    for path in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(path.name)
        try:
            if descriptor not in kept and stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.close(descriptor)
        except OSError:
            continue  # the one that listed them


def _state(pid: int) -> str:
    """Return the kernel's letter for what a process does; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process with the launcher, however that ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
