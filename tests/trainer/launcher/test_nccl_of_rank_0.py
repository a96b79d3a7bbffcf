"""Which ranks let NCCL log its start. There are no GPUs: the ranks end where NCCL would start."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.torch


class _JoinError(Exception):
    """Ends a rank that joins the process group."""


@pytest.mark.parametrize(
    ("rank", "gpus", "own", "level"),
    [
        (0, True, {}, "INFO"),
        (0, True, {"NCCL_DEBUG": "WARN"}, "WARN"),
        (1, True, {}, None),
        (0, False, {}, None),
    ],
    ids=["rank 0", "rank 0, set by the user", "rank 1", "no GPU"],
)
def test_only_rank_0_does_and_only_with_gpus(
    rank: int,
    gpus: bool,
    own: dict[str, str],
    level: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from llmtrain_trainer.worker import main

    def join(*_: Any) -> None:
        raise _JoinError

    environ, reporter = dict(own), SimpleNamespace()
    pod = SimpleNamespace(work_dir=tmp_path, world_size=2, pod_ip="127.0.0.1")
    run = SimpleNamespace(startup_timeout=1)
    task: Any = SimpleNamespace(
        rank=rank, local_rank=0, pod=pod, run=run, master=("127.0.0.1", 1), listener=None
    )
    with monkeypatch.context() as patch:
        patch.setattr(main.torch.cuda, "is_available", lambda: gpus)
        patch.setattr(main.torch.cuda, "set_device", lambda _: None)
        patch.setattr(main, "join", join)
        patch.setattr(os, "environ", environ)
        with pytest.raises(_JoinError):
            main._train(task, lambda _: None, reporter)  # type: ignore[arg-type]
    assert environ.get("NCCL_DEBUG") == level
    file = str(tmp_path / "nccl.log") if level == "INFO" else None
    assert environ.get("NCCL_DEBUG_FILE") == file
