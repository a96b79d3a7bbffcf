"""The checks of a recorded trace find gangs that were preempted for nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.operator_harness.foreign_pods import refused_seconds
from tests.support.operator_harness.queue_trace import GPUS, Entry, check_preemption
from tests.support.operator_harness.queue_watch import Attempt, Replay, Revision, TraceRecord

pytestmark = pytest.mark.unit

NODES = 4
JOBS = {
    name: Entry(name, nodes, GPUS, priority, 5.0, 0.0)
    for name, nodes, priority in (
        ("victim", 1, 0),
        ("other", 2, 0),
        ("winner", 3, 100),
        ("higher", 2, 1000),
    )
}


def attempt(job: str, *nodes: str, revision: int = 1) -> Attempt:
    return Attempt(job, 0, nodes, GPUS, float(revision), revision)


def preempted(released: int, **others: tuple[str, ...]) -> Attempt:
    found = attempt("victim", "n0")
    found.preempted_for, found.released = "winner", released
    found.others = {job: (nodes, GPUS) for job, nodes in others.items()}
    return found


def check(victim: Attempt, *attempts: Attempt) -> None:
    account = TraceRecord(attempts=[victim, *attempts], submitted={"winner": 5.0})
    check_preemption(NODES, victim, account, JOBS)


def test_the_preemptor_has_to_fit_when_its_victim_has_ended() -> None:
    check(preempted(9))
    check(preempted(9, other=("n1",)))
    with pytest.raises(AssertionError, match="winner does not fit without victim"):
        check(preempted(9, other=("n1", "n2")))


def test_the_preemptor_may_have_started() -> None:
    check(preempted(9, winner=("n1", "n2", "n3")))


def test_a_job_of_higher_priority_may_have_taken_the_nodes() -> None:
    victim = preempted(9, higher=("n1", "n2"))
    check(victim, attempt("higher", "n1", "n2", revision=7))
    for revision in (3, 11):  # before the preemptor came, and after the victim had ended
        with pytest.raises(AssertionError, match="does not fit"):
            check(victim, attempt("higher", "n1", "n2", revision=revision))


def job(revision: int, name: str, node: str = "", reason: str = "", number: int = 0) -> Revision:
    message = "preempted by ns/winner, which has a higher priority"
    status: dict[str, Any] = {
        "conditions": [{"type": "Placed", "reason": reason}],
        "attempt": number,
    }
    status["conditions"][0]["message"] = message
    if node:
        blocks = [{"nodes": [node]}]
        status["placement"] = {"blocks": blocks, "gpusPerNode": GPUS, "attempt": number}
    raw = {"metadata": {"name": name}, "spec": {"workers": {"nodes": 1}}, "status": status}
    return Revision(revision, float(revision), "job", deleted=False, raw=raw)


def pod(revision: int, name: str, node: str, *, deleted: bool = False) -> Revision:
    labels = {"job-name": name, "attempt": "0", "node-index": "0"}
    metadata = {
        "name": f"{name}-0-0",
        "uid": name,
        "labels": {f"llmtrain.dev/{key}": value for key, value in labels.items()},
    }
    container = {"resources": {"limits": {"nvidia.com/gpu": str(GPUS)}}}
    spec = {"nodeName": node, "containers": [container]}
    raw = {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}}
    return Revision(revision, float(revision), "pod", deleted, raw)


STARTS = [
    job(1, "victim", "n0"),
    pod(2, "victim", "n0"),
    job(3, "other", "n1"),
    job(4, "winner"),
]


def test_the_nodes_of_others_are_those_when_the_last_pod_has_ended() -> None:
    stop = job(5, "victim", reason="Preempted", number=1)
    end = pod(7, "victim", "n0", deleted=True)
    found = Replay(GPUS).run([*STARTS, stop, job(6, "late", "n2"), end, job(8, "winner", "n0")])
    assert found.violations == []
    victim = found.attempts[0]
    assert (victim.preempted_for, victim.released) == ("winner", 7)
    assert victim.others == {"other": (("n1",), GPUS), "late": (("n2",), GPUS)}


def test_no_gang_stops_for_one_that_has_started() -> None:
    started = [job(5, "winner", "n2"), pod(6, "winner", "n2")]
    stop = job(7, "victim", reason="Preempted", number=1)
    found = Replay(GPUS).run([*STARTS, *started, stop])
    assert found.violations == ["revision 7: victim stops for winner, which has started"]


def test_another_gang_that_is_preempted_for_the_same_job_may_still_have_its_placement() -> None:
    other = attempt("other", "n1", "n2", revision=2)
    other.preempted_for = "winner"
    check(preempted(9, other=("n1", "n2")), other)
    again = attempt("other", "n1", "n2", revision=8)
    with pytest.raises(AssertionError, match="does not fit"):
        check(preempted(9, other=("n1", "n2")), other, again)


def unstarted(revision: int, node: str = "", *, refused: bool = False) -> Revision:
    """A pod of `victim` that waits for kube-scheduler, or is refused by it."""
    found = pod(revision, "victim", node)
    reason = "Unschedulable" if refused else "SchedulerError"
    scheduled = {"type": "PodScheduled", "status": "True" if node else "False", "reason": reason}
    found.raw["status"] = {"phase": "Pending", "conditions": [scheduled]}
    return found


def test_the_longest_time_for_which_a_pod_is_refused_is_recorded() -> None:
    assert refused_seconds([unstarted(2), unstarted(9, "n0")]) == {"victim": 0.0}
    first = [unstarted(2), unstarted(3, refused=True), unstarted(7, refused=True)]
    assert refused_seconds([*first, unstarted(8)]) == {"victim": 5.0}
    again = [unstarted(8), unstarted(9, refused=True), pod(20, "victim", "", deleted=True)]
    assert refused_seconds([*reversed(again), *first, *STARTS[2:]]) == {"victim": 11.0}


def test_a_gang_may_leave_its_nodes_before_all_of_its_pods_are_bound() -> None:
    leaving = job(3, "victim", reason="Unschedulable", number=1)
    [placed] = leaving.raw["status"]["conditions"]
    placed["status"] = "False"
    found = Replay(GPUS).run([STARTS[0], unstarted(2), leaving, pod(4, "victim", "n0")])
    assert found.violations == []
    [left] = found.attempts
    assert (left.left_for, left.preempted_for) == ("Unschedulable", "")
    del placed["status"]
    found = Replay(GPUS).run([STARTS[0], unstarted(2), leaving, pod(4, "victim", "n0")])
    assert found.violations == ["revision 4: victim-0-0 is bound without a placement"]
