"""Turn an exception into a FailureInfo: a trainer error, a lost peer, or any other exception."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_trainer.errors import PeerLostError, TrainerError

_STORE_TYPES = frozenset({"DistNetworkError", "DistStoreError"})
"""Errors of torch's store. Compared by name, so that a failed data step does not import torch. An
error of NCCL (`DistBackendError`) is classified by its text."""

_OWN_SOCKET = re.compile(r"failed to (bind|listen)", re.IGNORECASE)
"""Text of a store error when this process itself cannot listen."""

_LOST = re.compile(
    r"connection (closed by|was likely closed|reset|refused|aborted|timed out)"
    r"|broken pipe|no route to host|failed to connect to"
    r"|timed out (waiting|connecting|after)|(has|operation) timed out"
    r"|(connect|read|write|wait|socket|barrier|collective operation) timeout"
    r"|timeout waiting for key|application timeout caused pair closure"
    r"|remote process (exit|or network|terminated)|ncclRemoteError|communicator was aborted",
    re.IGNORECASE,
)
"""Error texts of gloo, NCCL and torch's store for a connection that was lost or timed out. The name
of a library is not enough: they also report errors in their own settings."""


def failure_of(error: BaseException) -> FailureInfo:
    """Return the failure for an exception, by the most specific error in its chain."""
    for cause in exception_chain(error):
        if isinstance(cause, TrainerError):
            return FailureInfo(
                cause.reason, cause.message, cause.field, cause.remedy, cause.exit_code
            )
    for cause in exception_chain(error):
        if is_peer_loss(cause):
            text = f"{type(cause).__name__}: {cause}"
            return FailureInfo("PeerLost", text, exit_code=PeerLostError.exit_code)
    text = f"{type(error).__name__}: {error}"
    return FailureInfo("Exception", text, exit_code=TrainerError.exit_code)


def is_peer_loss(error: BaseException) -> bool:
    """Return True if a collective or the store failed because another process is gone.

    gloo raises plain RuntimeErrors.
    """
    if isinstance(error, ConnectionError):
        return True
    text = str(error)
    if type(error).__name__ in _STORE_TYPES:
        return not _OWN_SOCKET.search(text)
    return isinstance(error, RuntimeError) and _LOST.search(text) is not None


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, its causes, and those that a checkpoint gathered from other ranks."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        current = todo.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        todo += [current.__cause__, current.__context__]
        failures = getattr(current, "failures", None)  # CheckpointException: rank -> (error, trace)
        if isinstance(failures, dict):
            todo += [value[0] for value in failures.values() if isinstance(value, tuple)]
