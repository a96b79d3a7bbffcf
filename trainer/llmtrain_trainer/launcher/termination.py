"""The pod's termination message, as the pod contract has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain_core.api.defaults import TERMINATION_MESSAGE_BYTES
from llmtrain_trainer.launcher.status import Status
from llmtrain_trainer.runtime.log_format import write_line


def result_message(status: Status) -> bytes:
    """Return the termination message of a finished job, cut to what a kubelet reads.

    The trials of `network.tuning` are in it as a whole or not at all.
    """
    result = status.result()
    data = _encode(result)
    if status.network_tuning is not None:
        without_collectives = {**result, "collectives": []}
        with_trials = {**without_collectives, "networkTuning": status.network_tuning.to_wire()}
        if len(_encode(with_trials)) <= TERMINATION_MESSAGE_BYTES:
            return _encode(with_trials)
    while len(data) > TERMINATION_MESSAGE_BYTES and result["collectives"]:
        result["collectives"].pop()
        data = _encode(result)
    return data


def write_message(path: Path, data: bytes) -> None:
    """Write a termination message; without the file a pod still has its exit code."""
    try:
        path.write_bytes(data)
    except OSError as error:
        write_line(f"cannot write {path}: {error.strerror}")


def _encode(result: Mapping[str, Any]) -> bytes:
    return json.dumps({"result": result}, ensure_ascii=False, allow_nan=False).encode()
