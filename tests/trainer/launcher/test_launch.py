"""The pod contract, with real launchers on loopback addresses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmtrain_core.api import env as names
from tests.support.trainer.endpoints import check_metrics, check_status
from tests.support.trainer.locked_memory import lower_locked_memory

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

MakePods = Callable[[dict[str, Any]], Any]
MakeSpec = Callable[..., dict[str, Any]]


def _get(pods: Any, index: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{pods.address(index)}:9400{path}", timeout=5) as answer:
        return answer.read()  # type: ignore[no-any-return]


HANG = 240
"""Seconds after which a wait is given up: a hang fails by it, load does not."""


def _wait_for_step(pods: Any, index: int, step: int) -> dict[str, Any]:
    """Return the first status at or after a step that already shows how busy the pod is."""
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline:
        try:
            status = json.loads(_get(pods, index, "/status"))
            if status["step"] >= step and status["utilization"]:
                return status  # type: ignore[no-any-return]
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"no step {step}: {pods.log(index)[-3000:]}")


def _ends(processes: list[Any]) -> list[int | None]:
    """Wait for launchers; return their exit codes, None for one that hangs."""
    for process in processes:
        process.join(HANG)
    return [process.exitcode for process in processes]


STEPS = 100_000
"""More than any test waits for."""


def _long(job_spec: MakeSpec, corpus: Path, **changes: Any) -> dict[str, Any]:
    """A job of two pods that would run for a long time."""
    layout = {"pipeline": 2, "data": 2, "restarts": 0, **changes}
    return job_spec(
        **layout,
        precision="float32",
        uri=f"file://{corpus}",
        gpus_per_node=2,
        training={"steps": STEPS},
    )


def _listeners(port: int) -> set[str]:
    """Addresses with a listening IPv4 or IPv6 socket on a port, in the kernel's hex."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            host, number = address.split(":")
            if state == "0A" and int(number, 16) == port:
                found.add(host)
    return found


def _hex(address: str) -> str:
    return "".join(f"{int(part):02X}" for part in reversed(address.split(".")))


def _start(two: Any, details: Sequence[str], **more: str) -> list[subprocess.Popen[bytes]]:
    """Start launchers as a pod does: a fresh interpreter each. They may lock 8 MiB of memory."""
    return [
        subprocess.Popen(
            [sys.executable, "-m", "llmtrain_trainer.launch"],
            env={
                "PATH": os.environ["PATH"],
                "LLMTRAIN_METRICS": detail,
                **more,
                **two.environment(index),
            },
            stdout=(two.folder / f"log-{index}").open("w"),
            stderr=subprocess.STDOUT,
            preexec_fn=lower_locked_memory,
        )
        for index, detail in enumerate(details)
    ]


def test_two_pods_export_their_status_until_they_are_stopped(
    pods: MakePods, job_spec: MakeSpec, corpus: Path
) -> None:
    two = pods(_long(job_spec, corpus, pipeline=1, tensor=2))
    processes = _start(two, ("basic", "full"), LLMTRAIN_RDMA="preferred")
    try:
        _wait_for_step(two, 1, 13)
        status = _wait_for_step(two, 0, 13)
        check_status(status, STEPS)
        assert status["networkFallback"].startswith("MemlockTooLow: ranks ")
        assert status["nccl"] is None, "the ranks use gloo"
        check_metrics(_get(two, 0, "/metrics").decode(), lead=True, full=False)
        check_metrics(_get(two, 1, "/metrics").decode(), lead=False, full=True)
        assert _get(two, 1, "/healthz") == b"ok\n"
        with pytest.raises(urllib.error.HTTPError):
            _get(two, 0, "/secrets")
        assert _hex(two.address(0)) in _listeners(29500)
        assert not {"0" * 8, "0" * 32, _hex(two.address(1))} & _listeners(29500)
        for index in range(2):
            assert _hex(two.address(index)) in _listeners(9400)
        assert not {"0" * 8, "0" * 32} & _listeners(9400)
        for process in processes:
            process.terminate()
        assert [process.wait(HANG) for process in processes] == [143, 143], two.log(0)[-2000:]
    finally:
        for process in processes:
            process.kill()
            process.wait(10)
    assert two.message(0)["error"]["reason"] == "Terminated"


def test_two_pods_train_together_to_the_end(
    pods: MakePods, job_spec: MakeSpec, corpus: Path, tmp_path: Path
) -> None:
    checkpoint = {"uri": f"file://{tmp_path}/saved", "everySteps": 30}
    two = pods(
        job_spec(
            tensor=2,
            data=2,
            precision="float32",
            uri=f"file://{corpus}",
            gpus_per_node=2,
            checkpoint=checkpoint,
            training={"steps": 40},
        )
    )
    assert _ends([two.fork(index) for index in range(2)]) == [0, 0], two.log(0)[-2000:]
    result = two.message(0)["result"]
    assert result["phase"] == "finished" and result["step"] == 40
    assert result["heldOutLossAfter"] < result["heldOutLossBefore"] - 0.5
    assert result["lastCheckpointStep"] == 40
    assert "heartbeat" not in result
    assert two.message(1) is None


def test_a_killed_rank_is_the_cause_in_its_pod_and_a_lost_peer_in_the_other(
    pods: MakePods, job_spec: MakeSpec, corpus: Path
) -> None:
    two = pods(_long(job_spec, corpus))
    processes = [two.fork(index) for index in range(2)]
    _wait_for_step(two, 0, 3)
    _wait_for_step(two, 1, 3)
    ranks = _descendants(processes[1].pid)
    assert len(ranks) == 2
    os.kill(ranks[-1], signal.SIGKILL)
    assert _ends(processes) == [200, 137]
    cause = two.message(1)["error"]
    assert cause["reason"] == "Signal" and "SIGKILL" in cause["message"]
    assert (cause["rank"], cause["exitCode"], cause["field"]) == (3, 137, None)
    consequence = two.message(0)["error"]
    assert (consequence["reason"], consequence["exitCode"]) == ("PeerLost", 200)
    assert not [pid for pid in ranks if Path(f"/proc/{pid}/cmdline").exists()]


def test_a_pod_ends_with_143_after_sigterm(
    pods: MakePods, job_spec: MakeSpec, corpus: Path
) -> None:
    two = pods(_long(job_spec, corpus))
    processes = [two.fork(index) for index in range(2)]
    _wait_for_step(two, 0, 2)
    ranks = [pid for process in processes for pid in _descendants(process.pid)]
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    assert _ends(processes) == [143, 143]
    assert not [pid for pid in ranks if Path(f"/proc/{pid}/cmdline").exists()]


def test_a_pod_ends_at_once_after_sigterm_before_the_first_step(
    pods: MakePods,
    job_spec: MakeSpec,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its ranks are measuring the held-out loss, which could take longer than the grace period."""
    from llmtrain_trainer.training.trainer import Trainer

    monkeypatch.setattr(Trainer, "evaluate", lambda *_: time.sleep(10 * HANG))
    root = tmp_path / "saved"
    checkpoint = {"uri": f"file://{root}", "everySteps": 5}
    one = pods(job_spec(uri=f"file://{corpus}", checkpoint=checkpoint))
    process = one.fork(0)
    deadline = time.monotonic() + HANG
    while _phase(one) != "evaluating" and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert _ends([process]) == [143], one.log(0)
    assert "before it had anything to save" in one.message(0)["error"]["message"]
    assert not list(root.glob("step-*"))


def _phase(pods: Any) -> str | None:
    try:
        return str(json.loads(_get(pods, 0, "/status"))["phase"])
    except OSError:
        return None


def test_ranks_do_not_outlive_a_launcher_that_is_killed(
    pods: MakePods, job_spec: MakeSpec, corpus: Path
) -> None:
    one = pods(job_spec(data=2, uri=f"file://{corpus}", training={"steps": STEPS}))
    process = one.fork(0)
    _wait_for_step(one, 0, 1)
    ranks = _descendants(process.pid)
    process.kill()
    process.join(HANG)
    deadline = time.monotonic() + HANG
    while any(_alive(pid) for pid in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in ranks if _alive(pid)]


@pytest.mark.parametrize(
    ("fake", "code", "reason", "text"),
    [
        ("raise ValueError('a \\x1b[31mb\\n' + 'x' * 9000)", 1, "Exception", "ValueError: a"),
        ("import os; os._exit(7)", 7, "ExitCode", "exited with code 7"),
        ("import os; os.kill(os.getpid(), 24)", 152, "Signal", "SIGXCPU"),
        ("raise RuntimeError('[gloo/pair.cc] Connection closed by peer')", 200, "PeerLost", "gloo"),
        ("raise RuntimeError('[gloo] Unable to find address for: eth0')", 1, "Exception", "eth0"),
    ],
    ids=["exception", "exit code", "signal", "peer", "own interface"],
)
def test_a_pod_has_the_exit_code_of_its_rank(
    fake: str,
    code: int,
    reason: str,
    text: str,
    pods: MakePods,
    job_spec: MakeSpec,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 1 fails in a chosen way while rank 0 only ever sees the consequence."""
    from llmtrain_trainer.launcher.restart import coordinator
    from llmtrain_trainer.worker import main

    def train(task: Any, send: Any, witness: Any) -> None:
        if task.rank == 1:
            time.sleep(0.3)
            exec(fake)
        if code != 200:
            time.sleep(0.1)
            raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
        time.sleep(30)

    monkeypatch.setattr(main, "_train", train)
    if code != 200:  # the cause is there; only how soon depends on load
        monkeypatch.setattr(coordinator, "CAUSE_SECONDS", HANG)
    one = pods(job_spec(data=2, uri=f"file://{corpus}", restarts=0))
    assert _ends([one.fork(0)]) == [code], one.log(0)
    error = one.message(0)["error"]
    assert error["reason"] == reason and text in error["message"]
    assert error["rank"] == 1 and error["exitCode"] == code
    assert error["message"].isprintable() and len(json.dumps(error)) < 4096


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"uri": "package://no_such_corpus/texts"}, "CorpusMissing", "spec.data.sources[0].uri"),
        ({"uri": "file:///no/such/folder"}, "CorpusMissing", "spec.data.sources[0].uri"),
        ({"uri": "s3://bucket/x"}, "InvalidSpec", "spec.data.sources[0].uri"),
        (
            {"checkpoint": {"uri": "file:///dev/null/x"}},
            "CheckpointUnreadable",
            "spec.checkpoint.uri",
        ),
        (
            {"checkpoint": {"uri": "file:///tmp", "exportHuggingFace": "file:///dev/null/x"}},
            "ExportNotWritable",
            "spec.checkpoint.exportHuggingFace",
        ),
        ({"architecture": {"vocabSize": 100}}, "InvalidSpec", "spec.model.architecture.vocabSize"),
        ({"architecture": {"sequenceLength": 99999}}, "CorpusTooSmall", "spec.data.sources[0].uri"),
        ({"training": {"globalBatchSize": 7}}, "InvalidSpec", "spec.training.globalBatchSize"),
    ],
)
def test_wrong_input_ends_with_2_and_names_the_field(
    change: dict[str, Any],
    reason: str,
    field: str,
    pods: MakePods,
    job_spec: MakeSpec,
    corpus: Path,
) -> None:
    one = pods(job_spec(**{"uri": f"file://{corpus}", **change}))
    assert _ends([one.fork(0)]) == [2], one.log(0)
    error = one.message(0)["error"]
    assert (error["reason"], error["field"], error["exitCode"]) == (reason, field, 2)
    assert error["remedy"]


def test_a_missing_environment_variable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmtrain_trainer.launcher.launcher import main

    for name in names.OWNED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLMTRAIN_TERMINATION_LOG", str(tmp_path / "message"))
    assert main() == 2
    error = json.loads((tmp_path / "message").read_text())["error"]
    assert error["reason"] == "InvalidEnvironment" and "WORLD_SIZE" in error["message"]


@pytest.mark.parametrize(("port", "variable"), [(9400, "LLMTRAIN_PORT"), (29500, "MASTER_PORT")])
def test_a_port_in_use_is_named(
    port: int, variable: str, pods: MakePods, job_spec: MakeSpec, corpus: Path
) -> None:
    one = pods(job_spec(uri=f"file://{corpus}"))
    with socket.create_server((one.address(0), port)):
        assert _ends([one.fork(0)]) == [1], one.log(0)
    error = one.message(0)["error"]
    assert (error["reason"], error["exitCode"]) == ("PortInUse", 1)
    assert str(port) in error["message"] and variable in error["remedy"]


def _descendants(pid: int) -> list[int]:
    """Children of a launcher, oldest first: its ranks once they train."""
    found: list[tuple[int, int]] = []
    for task in Path("/proc").iterdir():
        if task.name.isdigit():
            try:
                fields = (task / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append((int(fields[19]), int(task.name)))  # when it started
    return [number for _, number in sorted(found)]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


@pytest.fixture(autouse=True)
def _torch_is_imported() -> Iterator[None]:
    """Forked launchers then start at once."""
    import llmtrain_trainer.worker.main  # noqa: F401

    yield
