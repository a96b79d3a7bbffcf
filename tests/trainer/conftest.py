"""Fixtures for tests with real ranks: data, job specifications, ranks and launchers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer.jobs import job_spec, random_shards
from tests.support.trainer.launchers import Pods
from tests.support.trainer.ranks import parameter_hash, run_trainers, run_world


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_rank() -> Iterator[None]:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    yield


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Prepared data of random tokens."""
    return random_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small text files."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(12):
        words = [f"word{(number * 31 + i * i) % 97} and" for i in range(400)]
        (folder / f"{number:02d}.txt").write_text(" ".join(words) + "\n")
    return folder


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Pods]]:
    """Make the pods of a job; all are gone after the test."""
    made: list[Pods] = []

    def make(spec: dict[str, Any]) -> Pods:
        made.append(Pods(tmp_path, spec))
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
