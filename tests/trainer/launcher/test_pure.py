"""Pure functions of the launcher, the runtime and the optimizer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_core.plan.network.communication import bus_factor
from llmtrain_trainer.config import OptimizerConfig
from llmtrain_trainer.errors import InputError, PeerLostError, TrainerError
from llmtrain_trainer.job_spec import load_job
from llmtrain_trainer.launcher.restart.first_cause import first_cause, rank_failure
from llmtrain_trainer.metrics.gpu_use import CpuMonitor
from llmtrain_trainer.runtime.exception_report import failure_of
from llmtrain_trainer.runtime.pod_env import PodEnvironment, interface_of
from llmtrain_trainer.runtime.sockets import listen
from tests.support.trainer.jobs import job_spec

pytestmark = pytest.mark.unit

LOST = FailureInfo("PeerLost", "gloo", exit_code=200)
BUG = FailureInfo("Exception", "ValueError: x", exit_code=1)


@pytest.mark.parametrize(
    ("exits", "rank", "code"),
    [
        ([(1, 200, LOST), (0, 1, BUG)], 0, 1),
        ([(1, 200, LOST), (0, -9, None)], 0, 137),
        ([(1, 200, LOST), (0, 200, LOST)], 1, 200),
        ([(3, 5, None), (2, 1, BUG)], 3, 5),
        ([(3, 200, None)], 3, 200),
    ],
)
def test_the_first_cause_is_not_a_consequence(
    exits: list[tuple[int, int, FailureInfo | None]], rank: int, code: int
) -> None:
    cause = first_cause([rank_failure(*exit) for exit in exits])
    assert (cause.rank, cause.exit_code) == (rank, code)


def test_a_failure_is_the_most_specific_error_of_a_chain() -> None:
    try:
        try:
            raise ConnectionResetError("peer")
        except OSError as error:
            raise ValueError("while handling") from error
    except ValueError as error:
        assert failure_of(error).exit_code == 200
    wrong = InputError("CorpusMissing", "m", field="f", remedy="r")
    assert failure_of(wrong) == FailureInfo("CorpusMissing", "m", "f", "r", 2)
    assert failure_of(RuntimeError("shapes differ")).exit_code == 1
    assert failure_of(PeerLostError("x")).exit_code == 200
    gathered = RuntimeError("checkpoint")
    gathered.failures = {3: (wrong, None)}  # type: ignore[attr-defined]
    assert failure_of(gathered).field == "f"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242", 200),
        ("[gloo/transport/tcp/pair.cc] Read error [127.0.0.1]:1: Connection reset by peer", 200),
        ("[gloo/transport/tcp/pair.cc] writev [127.0.0.1]:1: Broken pipe", 200),
        ("[gloo/transport/tcp/unbound_buffer.cc:93] Timed out waiting 1000ms for recv", 200),
        ("Gloo connectFullMesh failed with timed out connecting: SO_ERROR: x", 200),
        ("Application timeout caused pair closure", 200),
        ("NCCL error in: x.cpp: remote process exited or there was a network error", 200),
        ("NCCL communicator was aborted on rank 3.", 200),
        ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4)", 200),
        ("store->get('0') got error: wait timeout after 5ms, keys: /0", 200),
        ("Failed to recv, got 0 bytes. Connection was likely closed.", 200),
        ("[gloo/transport/tcp/device.cc:84] Unable to find address for: eth0", 1),
        ("NCCL error in: x.cpp: invalid usage, Duplicate GPU detected", 1),
        ("Cannot use ReduceOp.PREMUL_SUM with Gloo", 1),
        ("CUDA error: the launch timed out and was terminated", 1),
    ],
)
def test_a_lost_connection_is_a_lost_peer(text: str, code: int) -> None:
    assert failure_of(RuntimeError(text)).exit_code == code
    assert failure_of(type("DistBackendError", (RuntimeError,), {})(text)).exit_code == code
    assert failure_of(ValueError(text)).exit_code == 1


def test_a_store_that_cannot_listen_is_not_a_lost_peer() -> None:
    store_error = type("DistNetworkError", (RuntimeError,), {})
    assert failure_of(store_error("recvValue failed")).exit_code == 200
    own = "The server socket has failed to listen on any local network address."
    assert failure_of(store_error(own)).exit_code == 1


def test_an_unusable_port_names_its_variable() -> None:
    with listen("127.0.0.1") as other:
        port = other.getsockname()[1]
        with pytest.raises(TrainerError) as taken:
            listen("127.0.0.1", port, "LLMTRAIN_PORT")
    assert (taken.value.reason, taken.value.exit_code) == ("PortInUse", 1)
    assert "LLMTRAIN_PORT" in (taken.value.remedy or "") and str(port) in taken.value.message
    with pytest.raises(InputError) as wrong:
        listen("192.0.2.1")  # reserved for documentation
    assert (wrong.value.reason, wrong.value.exit_code) == ("InvalidEnvironment", 2)


def test_cpu_use_needs_an_interval() -> None:
    monitor = CpuMonitor()
    assert monitor.read([os.getpid()]) == []
    assert [use.gpu for use in monitor.read([os.getpid()])] == [0]


CONFIG = OptimizerConfig(1.0, 0.9, 0.95, 1e-8, 0.1, 1.0, 4, "cosine", 0.1)


def test_learning_rate_warms_up_and_decays_to_its_floor() -> None:
    pytest.importorskip("torch")
    from dataclasses import replace

    from llmtrain_trainer.training.optimizer import learning_rate

    rates = [learning_rate(CONFIG, step, 20) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0 and rates[19] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    constant = replace(CONFIG, decay="constant")
    assert learning_rate(constant, 19, 20) == 1.0
    assert learning_rate(CONFIG, 0, 1) > 0


def test_bus_bandwidth_follows_the_usual_convention() -> None:
    assert bus_factor("all_reduce", 8) == 1.75
    assert bus_factor("all_gather", 8) == bus_factor("reduce_scatter", 8) == 0.875
    assert bus_factor("send", 8) == 1


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("LLMTRAIN_RANKS", "0,0", "distinct"),
        ("LLMTRAIN_RANKS", "8", "below 8"),
        ("LLMTRAIN_RANKS", "a", "list of numbers"),
        ("WORLD_SIZE", "-1", "not a number"),
        ("LLMTRAIN_POD_IP", "", "not set"),
        ("LLMTRAIN_METRICS", "all", "'all' is not one of basic, full"),
    ],
)
def test_a_broken_environment_names_the_variable(name: str, value: str, text: str) -> None:
    good = {
        "LLMTRAIN_RANKS": "2,3",
        "WORLD_SIZE": "8",
        "LLMTRAIN_POD_IP": "127.0.0.1",
        "MASTER_ADDR": "a",
    }
    pod = PodEnvironment.read(good)
    assert (pod.ranks, pod.metrics) == ((2, 3), "basic")
    assert PodEnvironment.read({**good, "LLMTRAIN_METRICS": "full"}).metrics == "full"
    with pytest.raises(InputError, match=text) as caught:
        PodEnvironment.read({**good, name: value})
    assert caught.value.reason == "InvalidEnvironment" and name in caught.value.message


def test_the_namespace_of_a_job_may_be_missing(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    for metadata, namespace in (({}, ""), ({"namespace": "team"}, "team")):
        job.write_text(json.dumps({"metadata": {"name": "job", **metadata}, "spec": job_spec()}))
        run = load_job(job)
        assert (run.name, run.namespace, run.model) == ("job", namespace, "custom")


def test_loopback_pods_use_the_loopback_interface() -> None:
    assert interface_of("127.83.0.4") == "lo"
    assert interface_of("203.0.113.9", fallback="eth7") == "eth7"
