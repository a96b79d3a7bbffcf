"""A pod that may lock little memory: RDMA that is required fails at once, RDMA that is preferred
makes all ranks use TCP."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmtrain_core.api.failure_info import TRAINER_REASONS
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.launcher.restart.coordinator import RestartCoordinator
from llmtrain_trainer.launcher.restart.messages import Ready, Registered, StartRanks
from llmtrain_trainer.runtime import locked_memory
from llmtrain_trainer.runtime.locked_memory import (
    MEMLOCK_TOO_LOW,
    lack_of_locked_memory,
    locked_memory_limit,
    use_tcp,
)
from llmtrain_trainer.runtime.pod_env import PodEnvironment
from tests.support.trainer.jobs import job_spec
from tests.support.trainer.locked_memory import LOW_BYTES, lower_locked_memory

pytestmark = pytest.mark.unit


def environment(folder: Path, **more: str) -> dict[str, str]:
    spec = job_spec(data=1, pipeline=1, tensor=1, uri="file:///nowhere", gpus_per_node=1)
    job = folder / "job.json"
    job.write_text(json.dumps({"metadata": {"name": "j", "namespace": "n"}, "spec": spec}))
    return {
        "PATH": os.environ["PATH"],
        "LLMTRAIN_JOB_FILE": str(job),
        "LLMTRAIN_RANKS": "0",
        "LLMTRAIN_ATTEMPT": "0",
        "LLMTRAIN_POD_IP": "127.0.0.1",
        "LLMTRAIN_PORT": "0",
        "LLMTRAIN_WORK_DIR": str(folder),
        "LLMTRAIN_TERMINATION_LOG": str(folder / "termination"),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "WORLD_SIZE": "1",
        **more,
    }


def test_a_job_that_requires_rdma_ends_before_it_prepares_anything(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "llmtrain_trainer.launch"],
        env=environment(tmp_path, LLMTRAIN_RDMA="required"),
        preexec_fn=lower_locked_memory,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr[-2000:]
    error: dict[str, Any] = json.loads((tmp_path / "termination").read_text())["error"]
    assert error["reason"] == MEMLOCK_TOO_LOW and error["field"] == "spec.network.profile"
    assert "8192 KiB of memory (RLIMIT_MEMLOCK)" in error["message"]
    wanted = ("LimitMEMLOCK=infinity", "ulimits.noderesource.dev", "network.profile: tcp")
    places = [error["remedy"].index(text) for text in wanted]
    assert places == sorted(places), "the best remedy is first"


@pytest.mark.parametrize(
    ("limit", "lacks"), [(None, False), (1 << 30, False), ((1 << 30) - 1, True), (LOW_BYTES, True)]
)
def test_how_much_is_too_little(limit: int | None, lacks: bool) -> None:
    assert bool(lack_of_locked_memory(limit)) is lacks


@pytest.mark.parametrize(
    ("capabilities", "limited"),
    [("0000000000000000", True), ("0000000000004000", False), ("000001ffffffbfff", True)],
)
def test_the_capability_lifts_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: str, limited: bool
) -> None:
    status = tmp_path / "status"
    status.write_text(f"Name:\tpython\nCapEff:\t{capabilities}\nSeccomp:\t2\n")
    monkeypatch.setattr(locked_memory.resource, "getrlimit", lambda _: (LOW_BYTES, LOW_BYTES))
    assert locked_memory_limit(status) == (LOW_BYTES if limited else None)
    no_limit = resource.RLIM_INFINITY
    monkeypatch.setattr(locked_memory.resource, "getrlimit", lambda _: (no_limit, no_limit))
    assert locked_memory_limit(status) is None


def test_one_pod_without_it_makes_the_gang_use_tcp() -> None:
    gang = RestartCoordinator(world_size=3, max_restarts=1, startup_timeout=60, saves=False)
    gang.on_event(0, Registered((0,)), 0.0)
    gang.on_event(1, Registered((1, 2), "low" + "x" * 9000), 0.0)
    assert gang.on_event(0, Ready(0), 0.0) == ()
    [start] = gang.on_event(1, Ready(0), 0.0)
    assert isinstance(start, StartRanks)
    assert start.no_rdma.startswith("ranks 1, 2: low") and len(start.no_rdma) < 512


def test_a_network_that_the_job_names_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_NET", "IB")
    use_tcp()
    assert os.environ["NCCL_NET"] == "IB"
    monkeypatch.delenv("NCCL_NET")
    monkeypatch.setenv("OTHER", "")
    use_tcp()
    assert os.environ.pop("NCCL_NET") == "Socket"


def test_the_variable_of_the_contract(tmp_path: Path) -> None:
    assert PodEnvironment.read(environment(tmp_path)).rdma == ""
    given = environment(tmp_path, LLMTRAIN_RDMA="preferred")
    assert PodEnvironment.read(given).rdma == "preferred"
    with pytest.raises(InputError, match="LLMTRAIN_RDMA"):
        PodEnvironment.read(environment(tmp_path, LLMTRAIN_RDMA="always"))


def test_the_operator_knows_the_reason() -> None:
    assert MEMLOCK_TOO_LOW in TRAINER_REASONS
