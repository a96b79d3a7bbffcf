"""From an exception to a report: the trainer's own error, a lost peer, or a plain exception."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmtrain_core.api.failure import FailureInfo
from llmtrain_trainer.errors import PeerLostError, TrainerError

_STORE_TYPES = frozenset({"DistNetworkError", "DistStoreError"})
"""torch's, of its store; by name, so that describing a failure of the data step does not import
torch. What NCCL raises (`DistBackendError`) is judged by its text."""

_OWN_SOCKET = re.compile(r"failed to (bind|listen)", re.IGNORECASE)
"""What the store says when this process cannot listen: nobody else is to blame."""

_LOST = re.compile(
    r"connection (closed by|was likely closed|reset|refused|aborted|timed out)"
    r"|broken pipe|no route to host|failed to connect to"
    r"|timed out (waiting|connecting|after)|(has|operation) timed out"
    r"|(connect|read|write|wait|socket|barrier|collective operation) timeout"
    r"|timeout waiting for key|application timeout caused pair closure"
    r"|remote process (exit|or network|terminated)|ncclRemoteError|communicator was aborted",
    re.IGNORECASE,
)
"""What gloo, NCCL and torch's store say of a connection that went away or stays silent. The name
of a library is no such text: they also complain about their own settings."""


def describe(error: BaseException) -> FailureInfo:
    """Describe an exception by the most telling error in its chain."""
    for cause in chain(error):
        if isinstance(cause, TrainerError):
            return FailureInfo(
                cause.reason, cause.message, cause.field, cause.remedy, cause.exit_code
            )
    for cause in chain(error):
        if is_peer_loss(cause):
            text = f"{type(cause).__name__}: {cause}"
            return FailureInfo("PeerLost", text, exit_code=PeerLostError.exit_code)
    text = f"{type(error).__name__}: {error}"
    return FailureInfo("Exception", text, exit_code=TrainerError.exit_code)


def is_peer_loss(error: BaseException) -> bool:
    """Tell whether a collective or the store failed because another process went away.

    gloo raises plain RuntimeErrors.
    """
    if isinstance(error, ConnectionError):
        return True
    text = str(error)
    if type(error).__name__ in _STORE_TYPES:
        return not _OWN_SOCKET.search(text)
    return isinstance(error, RuntimeError) and _LOST.search(text) is not None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, those it was raised from, and those a checkpoint gathered from ranks."""
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
