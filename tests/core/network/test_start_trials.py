"""Which variables are tried on which network, in which order, and which of them are kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmtrain_core.api.defaults import GPU_RESOURCE, LEAST_GAIN, MAX_NETWORK_TRIALS
from llmtrain_core.api.job import LEFT_TO_NCCL, NetworkTuning, is_candidate_name
from llmtrain_core.api.status.network_tuning import NetworkTrial, read_network_tuning
from llmtrain_core.network.environments import TABLE
from llmtrain_core.network.profile import NAMED, PLAIN
from llmtrain_core.network.start_trials import (
    FIXED_ROWS,
    RDMA_ROWS,
    SOCKET_ROWS,
    Variables,
    next_trial,
    start_candidates,
)
from tests.support.node_lists import FOLDER, facts_of
from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

ROWS = RDMA_ROWS | SOCKET_ROWS | FIXED_ROWS


def names(row: str, nodes: int = 2, gpus: int = 8, given: tuple[str, ...] = ()) -> set[str]:
    found = start_candidates(row, GPU_RESOURCE, nodes, gpus, given)
    return {name for each in found for name in each}


def test_the_sets_of_rows_have_each_row_of_the_table() -> None:
    seen = {
        candidate.row
        for name in (path.stem for path in FOLDER.iterdir())
        for facts in facts_of(name).values()
        for row in TABLE
        for candidate in row(facts)
    }
    assert seen | {PLAIN, NAMED} == ROWS


def test_candidates_follow_from_the_network_and_are_valid() -> None:
    page = (ROOT / "docs" / "networks.md").read_text()
    for row in (*ROWS, ""):
        found = start_candidates(row, GPU_RESOURCE, 2, 8, ())
        assert len(found) < MAX_NETWORK_TRIALS
        assert not found or NetworkTuning(candidates=[dict(each) for each in found])
        assert all(f"`{name}`" in page for each in found for name in each)
    pairs, sockets = {"NCCL_IB_QPS_PER_CONNECTION"}, {"NCCL_SOCKET_NTHREADS"}
    assert pairs <= names("coreweave-infiniband") and not pairs & names("aws-efa")
    assert "NCCL_PXN_DISABLE" in names("aws-efa") and "NCCL_PXN_DISABLE" not in names("tcp")
    assert sockets <= names("tcp") and not sockets & names("coreweave-infiniband")
    assert names("gke-gib") == names("amd-ainic") == set()
    assert start_candidates("azure-infiniband", "amd.com/gpu", 2, 8, ()) == ()


def test_what_a_gang_cannot_use_is_not_tried() -> None:
    one_node = names("coreweave-infiniband", nodes=1)
    assert one_node == {"NCCL_NVLS_ENABLE", "NCCL_MAX_CTAS", "NCCL_MIN_CTAS"}
    one_gpu = names("coreweave-infiniband", gpus=1)
    assert not one_gpu & {"NCCL_NVLS_ENABLE", "NCCL_PXN_DISABLE"} and "NCCL_MIN_CTAS" in one_gpu
    assert names("tcp", nodes=1, gpus=1) == set()


def test_what_the_pods_have_is_not_tried() -> None:
    given = ("NCCL_NVLS_ENABLE", "NCCL_IB_SPLIT_DATA_ON_QPS", "HOME")
    found = start_candidates("oci-roce", GPU_RESOURCE, 2, 8, given)
    assert {"NCCL_IB_QPS_PER_CONNECTION": "4"} in found
    assert not any(each.keys() & {*given} for each in found)


def test_what_nccl_chooses_is_no_candidate() -> None:
    assert not any(map(is_candidate_name, (*LEFT_TO_NCCL, "LD_PRELOAD", "NCCL_", "NCCL_a")))
    assert is_candidate_name("NCCL_NVLS_ENABLE")


def tune(
    candidates: list[Variables], seconds: Callable[[Variables], float | None]
) -> tuple[Variables, list[NetworkTrial]]:
    trials: list[NetworkTrial] = []
    while (found := next_trial(candidates, trials))[1] is not None:
        tried = found[1]
        time = seconds(tried)
        failure = "Exception" if time is None else None
        trials.append(NetworkTrial(variables=tried, step_seconds=time, failure=failure))
    return found[0], trials


A, B, C = {"NCCL_A": "1"}, {"NCCL_B": "1"}, {"NCCL_C": "1"}


def test_each_candidate_is_tried_with_the_fastest_before_it() -> None:
    def seconds(tried: Variables) -> float | None:
        return None if "NCCL_B" in tried else 1.0 - 0.1 * len(tried)

    fastest, trials = tune([A, B, C], seconds)
    assert [trial.variables for trial in trials] == [{}, A, {**A, **B}, {**A, **C}]
    assert fastest == {**A, **C}


def test_noise_changes_nothing_and_no_trial_is_repeated() -> None:
    fastest, trials = tune([A, B, A, {}], lambda tried: 1.0 - 0.9 * LEAST_GAIN * len(tried))
    assert fastest == {} and [trial.variables for trial in trials] == [{}, A, B]
    later = {"NCCL_A": "2"}
    fastest, trials = tune(
        [A, later], lambda tried: {"1": 0.9, "2": 0.8}.get(*tried.values(), 1.0) if tried else 1.0
    )
    assert fastest == later and len(trials) == 3


def test_a_status_that_is_not_valid_says_nothing() -> None:
    trial = {"variables": A, "stepSeconds": 0.5}
    said = {"state": "Chosen", "placement": "ab", "fastest": A, "trials": [trial]}
    found = read_network_tuning(said)
    assert found is not None and found.to_wire() == said
    for wrong in (
        None,
        {**said, "trials": [trial] * 17},
        {**said, "fastest": {"LD_PRELOAD": "x"}},
        {**said, "fastest": {"NCCL_" + "X" * 60: "x"}},
        {**said, "fastest": {"NCCL_A": "x" * 65}},
        {**said, "fastest": {"NCCL_A": "\x1b[31m"}},
        {**said, "trials": [{**trial, "failure": "a\nb"}]},
        {**said, "trials": [{**trial, "variables": {"HOME": "/"}}]},
    ):
        assert read_network_tuning(wrong) is None, wrong
