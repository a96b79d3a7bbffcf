"""Which ranks let NCCL log its start, and read it. There are no GPUs: a test writes the log."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.torch


LOG = (
    "n:1:2 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.7<0>\n"
    "n:1:2 [0] NCCL INFO Using network Socket\n"
)


@pytest.mark.parametrize(
    ("rank", "gpus", "own", "level"),
    [
        (0, True, {}, "INFO"),
        (0, True, {"NCCL_DEBUG": "WARN", "NCCL_DEBUG_FILE": "nccl.log"}, "WARN"),
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
    """A file that another program writes at the place of the log stays as it is."""
    from llmtrain_trainer.runtime.reports import NcclReport, Report, StepReport
    from llmtrain_trainer.worker import main, nccl_log

    step = StepReport(1, 1.0, {}, tokens=8, loss=2.0, grad_norm=1.0, learning_rate=0.1)
    path, sent = tmp_path / "nccl.log", list[Report]()

    def trainer(*arguments: Any, **_: Any) -> Any:
        path.write_text(LOG)
        return SimpleNamespace(train=lambda _: arguments[3](step))

    environ, reporter = dict(own), SimpleNamespace()
    pod = SimpleNamespace(
        work_dir=tmp_path, world_size=2, pod_ip="127.0.0.1", node_name="n", rdma="", ranks=(0,)
    )
    run = SimpleNamespace(startup_timeout=1)
    task: Any = SimpleNamespace(
        rank=rank,
        local_rank=0,
        pod=pod,
        run=run,
        data=None,
        master=("127.0.0.1", 1),
        listener=None,
        gate=None,
    )
    with monkeypatch.context() as patch:
        patch.setattr(main.torch.cuda, "is_available", lambda: gpus)
        patch.setattr(main.torch.cuda, "set_device", lambda _: None)
        patch.setattr(main, "join", lambda *_: None)
        patch.setattr(main, "leave", lambda *_: None)
        patch.setattr(main, "Trainer", trainer)
        patch.setattr(nccl_log, "_is_configured", lambda _: False)
        patch.setattr(os, "environ", environ)
        main._train(task, sent.append, reporter)  # type: ignore[arg-type]
    assert environ.get("NCCL_DEBUG") == level
    networks = [report.network.network for report in sent if isinstance(report, NcclReport)]
    if level == "INFO":
        assert environ["NCCL_DEBUG_FILE"] == str(path)
        assert networks == ["Socket"] and not path.exists()
    else:
        assert environ == own and not networks
        assert path.read_text() == LOG
