"""Whatever a status has, the queue goes on for all other jobs.

Only an administrator may write a status. The API server checks it by its schema, which admits more
than the operator writes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.api.status.job import JobStatus
from llmtrain_core.queueing import Assignment, RunningJob
from llmtrain_core.topology.inventory import Node
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.informers import ChangeHandlers, Informers
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.cache.records import JobRecord, NodeRecord, fabric_record
from llmtrain_operator.config import Config
from llmtrain_operator.kube.api import Item, KubeApi
from llmtrain_operator.metrics.collector import ClusterCollector
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.scheduler import snapshot
from llmtrain_operator.scheduler.cycle import (
    decide,
    find_better_placement,
    find_place_elsewhere,
)
from llmtrain_operator.scheduler.jobs import running_job
from llmtrain_operator.scheduler.snapshot import ClusterReader
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.observed import status
from tests.support.operator_harness.scheduling import GPU, LEAF, SPINE

pytestmark = pytest.mark.unit

FABRIC = {
    "levels": [
        {"name": "spine", "nodeLabel": SPINE, "oversubscription": 4},
        {"name": "leaf", "nodeLabel": LEAF, "oversubscription": 2},
        {"name": "node", "nodeLabel": "kubernetes.io/hostname"},
    ]
}
TIMES = (
    "0001-01-01T00:00:00Z",
    "0000-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-23:59",
    "2026-01-01T00:00:00+99:59",
    "2026-01-01t00:00:00z",
    "2026-01-01T00:00:00x5Z",
)
"""What the API server accepts as `date-time`."""
NUMBERS = (0, 1, 3, 2**53, 1e308, -(2**31))
TEXTS = ("", "n0", "n1", "n4", "x" * 60)
TIME = re.compile(r"\d{4}-\d\d-\d\dT.*Z")


def ago(seconds: float) -> str:
    return format_time(datetime.now(UTC) - timedelta(seconds=seconds))


def whole_status() -> dict[str, Any]:
    """The status of a running job, with everything that loops over all jobs read."""
    failure = {"attempt": 0, "reason": "NodeLost", "message": "", "node": "n5", "evidence": "Node"}
    found = status(
        ConditionType.RUNNING,
        phase="Running",
        startTime=ago(600),
        attemptStartTime=ago(600),
        backoffUntil=ago(300),
        completionTime=ago(0),
        estimatedStart=ago(0),
        failures=[{**failure, "time": ago(seconds)} for seconds in (60, 120, 180)],
        move={"attempt": 0, "afterCheckpoint": 5, "deadline": ago(-60), "nodes": ["n1"]},
        completedPods={"attempt": 0, "indexes": "1"},
        lastRestart={
            "time": ago(60),
            "attempt": 0,
            "action": "RestartGang",
            "reason": "NodeLost",
            "message": "",
        },
        betterPlacement={"attempt": 0, "gain": 2.0, "summary": "x"},
        unstartedAttempts=1,
        progress={
            "phase": "training",
            "step": 20,
            "totalSteps": 100,
            "lastCheckpointStep": 10,
            "eta": ago(-1000),
        },
        plan={
            "gpus": 4,
            "parameters": 1,
            "tokens": 1,
            "flopsPerToken": {"fullAttention": 1, "causalAttention": 1},
            "totalFlops": 1.0,
            "memory": {"perGpuBytes": {}, "totalBytes": 1},
            "bubble": 0.0,
            "step": {"seconds": 10.0, "computeSeconds": 1.0, "exposed": {"dp": 1.0}},
            "measured": {
                "attempt": 0,
                "fromStep": 1,
                "atStep": 20,
                "stepSeconds": 10.0,
                "errorRatio": 1.0,
            },
        },
    )
    for item in found["conditions"]:
        item["lastTransitionTime"] = ago(600)
    placed = found["placement"] = copy.deepcopy(found["placement"])
    placed |= {"priority": 5, "deadline": ago(-5000)}
    placed["spares"] = [{"path": "", "nodes": ["n3"]}]
    setting = {"kind": "Resource", "name": "rdma/ib", "value": "1", "setBy": "row", "source": ""}
    found["network"] = {"row": "row", "fact": "", "settings": [setting]}
    placed["levels"] = [{"level": name, "domains": 1} for name in ("spine", "leaf", "node")]
    return found


Path = tuple[str | int, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of each value in a status, containers included."""
    if path:
        yield path
    items = enumerate(value) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else items:
        yield from leaves(item, (*path, key))


def value_at(value: Any, path: Path) -> Any:
    return value_at(value[path[0]], path[1:]) if path else value


PATHS = sorted(leaves(whole_status()), key=str)


def changed(path: Path, value: Any) -> dict[str, Any] | None:
    """A status with another value; without it for None. None if the schema does not admit it."""
    found = whole_status()
    parent: Any = found
    for key in path[:-1]:
        parent = parent[key]
    if value is None:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    try:
        JobStatus.from_wire(found)
    except ValueError:
        return None
    return found


def cluster_with(hostile: dict[str, Any]) -> Informers:
    """Six nodes, a job that waits, and one with a status; its last state is in no cache."""
    informers = Informers(
        cast(KubeApi, None), None, False, ChangeHandlers(*[lambda *_: None] * 7), Metrics()
    )
    informers.fabrics._store(
        "default", None, fabric_record({"metadata": {"name": "default"}, "spec": FABRIC})
    )
    for index in range(6):
        tags = {SPINE: "s0", LEAF: f"l{index // 2}"}
        amounts = {GPU: 2, "pods": 100, "cpu": 10**6, "memory": 2**50, "ephemeral-storage": 2**50}
        node = Node(f"n{index}", tags, amounts, cordoned=index == 1)
        informers.nodes._store(node.name, None, NodeRecord(node, ""))
    for name in ("hostile", "waiting"):
        raw = job_object(name, name, runPolicy={"activeDeadlineSeconds": 7200})
        raw["metadata"] |= {"uid": name, "resourceVersion": "7", "generation": 1}
        raw["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z"}
        raw["status"] = hostile if name == "hostile" else {}
        informers.jobs._upsert(Item(raw))
    for informer in informers:
        informer.synced.set()
    return informers


def run_cycle(informers: Informers) -> object:
    """Do what reads the jobs of all tenants; return the decision about the waiting job."""
    reader = ClusterReader(informers, CheckedJobs(), lambda *_: frozenset(), Config())
    reader.leaving_jobs()
    list(reader.promised("hostile", {}))
    state = reader.cluster_state({})
    for job in state.running:
        find_better_placement(job, state)
        find_place_elsewhere(job, state)
    collector = ClusterCollector(informers, lambda _: (), reader.quarantine, lambda: 0)
    assert list(collector.collect())
    return decide(reader.pending_jobs(), state).pending["waiting"]


@given(
    some.sampled_from(PATHS),
    some.one_of(
        some.sampled_from([None, [], {}, *TIMES, *NUMBERS, *TEXTS]),
        some.integers(-1, 2**53),
        some.floats(0, allow_infinity=False),
    ),
)
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much],
)
def test_a_random_value_stops_no_other_job(path: Path, value: Any) -> None:
    hostile = changed(path, value)
    if hostile is not None:
        assert isinstance(run_cycle(cluster_with(hostile)), Assignment)


def test_no_time_stops_another_job() -> None:
    found = whole_status()
    times = [path for path in PATHS if TIME.fullmatch(str(value_at(found, path)))]
    assert len(times) >= 15
    for path in times:
        for value in TIMES:
            hostile = changed(path, value)
            assert hostile is not None
            assert isinstance(run_cycle(cluster_with(hostile)), Assignment), (path, value)


def test_no_range_of_pods_stops_another_job() -> None:
    for value in ("5-", "-", "-5", "3-1", "0,,1", "0-99999999", "0,1,2,3"):
        hostile = changed(("completedPods", "indexes"), value)
        assert hostile is not None
        assert isinstance(run_cycle(cluster_with(hostile)), Assignment), value


def test_a_failure_in_the_far_future_excludes_no_node() -> None:
    """The message of a job that waits for such a node could not be written."""
    found = whole_status()
    for failure in found["failures"]:
        failure["time"] = "9999-12-31T23:59:59Z"
    reader = ClusterReader(cluster_with(found), CheckedJobs(), lambda *_: frozenset(), Config())
    assert not reader.quarantine().exists


def test_a_job_that_cannot_be_judged_is_left_out_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(record: JobRecord, *rest: Any, **more: Any) -> RunningJob | None:
        if record.uid == "hostile":
            raise ZeroDivisionError
        return running_job(record, *rest, **more)

    monkeypatch.setattr(snapshot, "running_job", fail)
    reader = ClusterReader(
        cluster_with(whole_status()), CheckedJobs(), lambda *_: frozenset(), Config()
    )
    for _ in range(2):
        found = decide(reader.pending_jobs(), reader.cluster_state({}))
        assert isinstance(found.pending["waiting"], Assignment)
    assert caplog.text.count("job=hostile is left out of the scheduling cycle") == 1


def test_a_usual_status_is_read() -> None:
    found = whole_status()
    JobStatus.from_wire(found)
    informers = cluster_with(found)
    assert informers.jobs.get("hostile") is not None
    assert isinstance(run_cycle(informers), Assignment)


def test_a_status_that_cannot_be_read_keeps_the_last_readable_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    informers = cluster_with(whole_status())
    raw = job_object("hostile", "hostile")
    raw["metadata"] |= {"uid": "hostile", "resourceVersion": "8", "generation": 1}
    raw["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z"}
    raw["status"] = whole_status() | {"completedPods": {"attempt": 0, "indexes": "5-"}}
    informers.jobs._upsert(Item(raw))
    found = informers.jobs.get("hostile")
    assert found is not None and found.view.completed_pods == {1}
    assert informers.jobs.unreadable == 1
    assert "uid=hostile cannot be read: ValueError: completed_pods: " in caplog.text
