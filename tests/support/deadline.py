"""End a run whose test ignores its time limit, and name the test.

pytest-timeout raises in the main thread when a test and its fixtures take longer than their limit.
That cannot end a test that catches the exception, whose clean-up hangs, or that waits in C code.
This plugin waits a little longer, prints the test and the stacks of all threads, and exits.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Generator

import pytest

GRACE_SECONDS = float(os.environ.get("LLMTRAIN_TEST_GRACE_SECONDS", "60"))
"""Time for fixtures to clean up after a test that pytest-timeout has stopped."""


def limit_of(item: pytest.Item) -> float:
    """Return the time limit of a test in seconds, as pytest-timeout finds it; 0 is no limit."""
    marker = item.get_closest_marker("timeout")
    if marker is not None:
        return float(marker.args[0] if marker.args else marker.kwargs["timeout"])
    return float(item.config.getoption("timeout") or item.config.getini("timeout") or 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Exit if a test, its fixtures included, goes on after its limit and the grace period."""
    limit = limit_of(item)
    if not limit:
        return (yield)
    capture = item.config.pluginmanager.getplugin("capturemanager")
    timer = threading.Timer(limit + GRACE_SECONDS, _exit, (item.nodeid, limit, capture))
    timer.daemon = True
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()


def _exit(test: str, limit: float, capture: pytest.CaptureManager) -> None:
    capture.suspend_global_capture(in_=True)
    out, err = capture.read_global_capture()
    text = f"\n{out}{err}\n{test} still runs {GRACE_SECONDS:g} s after its limit of {limit:g} s\n"
    os.write(2, text.encode(errors="replace"))
    faulthandler.dump_traceback(2, all_threads=True)
    os._exit(1)
