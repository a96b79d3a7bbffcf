"""Real ranks in tests: forked from a parent that has imported torch, talking over loopback."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

_NETWORKS = itertools.count()

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_rank() -> Iterator[None]:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    yield


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def job_spec(
    *,
    tensor: int = 1,
    pipeline: int = 1,
    data: int = 1,
    context: int = 1,
    replicate: int = 1,
    expert: int = 1,
    pipelineSchedule: str = "1F1B",  # noqa: N803 - as in the manifest
    virtualStages: int = 1,  # noqa: N803
    precision: str = "float64",
    uri: str = "file:///nowhere",
    checkpoint: dict[str, Any] | None = None,
    gpus_per_node: int | None = None,
    architecture: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    init_from: str | None = None,
    restarts: int = 3,
) -> dict[str, Any]:
    """A job whose model is tiny in every dimension, all of them different."""
    spec: dict[str, Any] = {
        "model": {
            "architecture": {
                "layers": 4,
                "hiddenSize": 32,
                "heads": 4,
                "kvHeads": 2,
                "ffnSize": 48,
                "vocabSize": 320,
                "sequenceLength": 16,
                **(architecture or {}),
            }
        },
        "data": {"sources": [{"name": "text", "uri": uri}], "heldOutFraction": 0.2},
        "training": {
            "steps": 6,
            "globalBatchSize": 8,
            "microBatchSize": 2,
            "precision": precision,
            "optimizer": {"learningRate": 0.01},
            "schedule": {"warmupSteps": 2},
            "seed": 7,
            **(training or {}),
        },
        "parallelism": {
            "tensor": tensor,
            "pipeline": pipeline,
            "data": data,
            "context": context,
            "replicate": replicate,
            "expert": expert,
            "pipelineSchedule": pipelineSchedule,
            "virtualStages": virtualStages,
        },
        "workers": {
            "gpusPerNode": gpus_per_node or tensor * pipeline * data * context * replicate,
            "image": "test",
        },
        "failurePolicy": {"maxRestartsInPlace": restarts},
    }
    if checkpoint:
        spec["checkpoint"] = checkpoint
    if init_from:
        spec["model"]["initFrom"] = init_from
    return spec


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Prepared data of random tokens."""
    import numpy as np

    from llmtrain_trainer.data.prepare import PreparedData
    from llmtrain_trainer.data.shards import write_shards

    folder = tmp_path_factory.mktemp("shards")
    random = np.random.default_rng(0)
    train = random.integers(0, 320, 4000).astype(np.uint32)
    held_out = random.integers(0, 320, 700).astype(np.uint32)
    write_shards(folder, "train", [train], 320)
    write_shards(folder, "held-out", [held_out], 320)
    return PreparedData(folder, len(train), len(held_out), "digest")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small text files."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(12):
        words = [f"word{(number * 31 + i * i) % 97} and" for i in range(400)]
        (folder / f"{number:02d}.txt").write_text(" ".join(words) + "\n")
    return folder


Body = Callable[[Any, int], Any]


def run_world(
    world: int, body: Callable[[int], Any], timeout: float = 120, killed: bool = False
) -> list[Any]:
    """Fork `world` ranks in one default process group; return what `body(rank)` returns in each.

    Where one is `killed`, their exit codes instead.
    """
    from llmtrain_trainer.parallel.workarounds import renew_thread_pool
    from llmtrain_trainer.worker.rendezvous import join, leave

    port, queue = free_port(), FORK.Queue()

    def enter(rank: int) -> None:
        renew_thread_pool()
        code = 1
        try:
            wait = timedelta(seconds=60)
            store = join(rank, world, "127.0.0.1", ("127.0.0.1", port), wait)
            result = body(rank)
            queue.put((rank, result, None))
            leave(store, rank, world, wait)
            code = 0
        except BaseException:
            queue.put((rank, None, traceback.format_exc()))
        queue.close()
        queue.join_thread()
        os._exit(code)

    ranks = [FORK.Process(target=enter, args=(rank,)) for rank in range(world)]
    for process in ranks:
        process.start()
    if killed:
        for process in ranks:
            process.join(timeout)
            process.kill()
        return [process.exitcode for process in ranks]
    try:
        results = sorted((queue.get(timeout=timeout) for _ in ranks), key=lambda result: result[0])
    finally:
        for process in ranks:
            process.join(20)
            process.kill()
    failures = [error for _, _, error in results if error]
    assert not failures, failures[0]
    return [result for _, result, _ in results]


def run_trainers(
    spec: dict[str, Any],
    data: Any,
    body: Callable[[Any], Any],
    timeout: float = 120,
    killed: bool = False,
) -> list[Any]:
    """Build a `Trainer` on every rank of the job's layout and return what `body(trainer)` does.

    Everything a trainer sends is kept in its attribute `sent`.
    """
    import torch

    from llmtrain_trainer.config import from_spec
    from llmtrain_trainer.training.trainer import Trainer

    run = from_spec("test", spec)

    def on_rank(rank: int) -> Any:
        sent: list[Any] = []
        trainer = Trainer(run, data, torch.device("cpu"), sent.append)
        trainer.sent = sent  # type: ignore[attr-defined]
        return body(trainer)

    return run_world(run.layout.world_size, on_rank, timeout, killed)


def parameter_hash(trainer: Any) -> str:
    """Hash of this rank's shards, bit for bit."""
    import hashlib

    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(trainer.model.named_parameters()):
        digest.update(name.encode())
        local = parameter.detach().to_local().contiguous()
        digest.update(local.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Pods:
    """Launchers of one job, one per loopback address, forked from this process."""

    def __init__(self, folder: Path, spec: dict[str, Any], third: int) -> None:
        degrees = spec["parallelism"]
        self.world = degrees["tensor"] * degrees["pipeline"] * degrees["data"]
        self.size = spec["workers"]["gpusPerNode"]
        self.folder, self.third, self.port = folder, third, 29500
        self.job = folder / "job.json"
        self.job.write_text(json.dumps({"metadata": {"name": "test"}, "spec": spec}))
        self.processes: list[Any] = []

    def address(self, index: int) -> str:
        return f"127.84.{self.third}.{index + 1}"

    def environment(self, index: int) -> dict[str, str]:
        first = index * self.size
        work = self.folder / f"work-{index}"
        work.mkdir(exist_ok=True)
        return {
            "LLMTRAIN_JOB_FILE": str(self.job),
            "LLMTRAIN_RANKS": ",".join(map(str, range(first, first + self.size))),
            "LLMTRAIN_ATTEMPT": "0",
            "LLMTRAIN_POD_IP": self.address(index),
            "LLMTRAIN_NODE_NAME": f"node-{index}",
            "LLMTRAIN_PORT": "9400",
            "LLMTRAIN_WORK_DIR": str(work),
            "LLMTRAIN_TERMINATION_LOG": str(self.folder / f"termination-{index}"),
            "MASTER_ADDR": self.address(0),
            "MASTER_PORT": str(self.port),
            "WORLD_SIZE": str(self.world),
            "NODE_RANK": str(index),
            "LOCAL_WORLD_SIZE": str(self.size),
        }

    def fork(self, index: int) -> Any:
        """Start a launcher that shares this process's imports."""

        def enter() -> None:
            from llmtrain_trainer.launcher.launcher import main

            log = (self.folder / f"log-{index}").open("w")
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stdout, sys.stderr = log, log
            os.environ.update(self.environment(index))
            code = 99
            try:
                code = main()
            except BaseException:
                traceback.print_exc()
            log.flush()
            os._exit(code)

        process = FORK.Process(target=enter)
        process.start()
        self.processes.append(process)
        return process

    def message(self, index: int) -> Any:
        path = self.folder / f"termination-{index}"
        return json.loads(path.read_text()) if path.exists() else None

    def log(self, index: int) -> str:
        return (self.folder / f"log-{index}").read_text()

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join(5)


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Pods]]:
    """Make the pods of a job; all are gone after the test."""
    made: list[Pods] = []

    def make(spec: dict[str, Any]) -> Pods:
        third = (os.getpid() * 7 + next(_NETWORKS)) % 250 + 1
        made.append(Pods(tmp_path, spec, third))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture(name="run_trainers", scope="session")
def _run_trainers() -> Callable[..., list[Any]]:
    return run_trainers


@pytest.fixture(name="run_world", scope="session")
def _run_world() -> Callable[..., list[Any]]:
    return run_world


@pytest.fixture(name="job_spec", scope="session")
def _job_spec() -> Callable[..., dict[str, Any]]:
    return job_spec


@pytest.fixture(name="parameter_hash", scope="session")
def _parameter_hash() -> Callable[[Any], str]:
    return parameter_hash
