"""/metrics of a real operator while jobs wait, run, fail, restart and finish on scripted nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmtrain_core.images import VERSION
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import PodScript, named
from tests.support.operator_harness.harness import (
    OperatorHarness,
    OperatorProcess,
    message,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TOPOLOGY = "network.topology.nvidia.com"
FOUR_NODES = {"workers": {"nodes": 4}, "parallelism": {"tensor": 2, "data": 4}}
GIVE_UP_SECONDS = 60.0


class Scraped:
    """The samples of one scrape, without the prefix of all names."""

    def __init__(self, text: str):
        self.text = text
        self._values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._values[sample.name, frozenset(sample.labels.items())] = sample.value

    def get(self, name: str, **labels: str) -> float | None:
        return self._values.get((f"llmtrain_operator_{name}", frozenset(labels.items())))

    def labels(self, name: str, label: str) -> set[str]:
        return {
            dict(labels)[label]
            for full, labels in self._values
            if full == f"llmtrain_operator_{name}"
        }


async def scraped(operator: OperatorProcess, until: Callable[[Scraped], bool]) -> Scraped:
    """Scrape until the condition holds: the caches follow the status within milliseconds."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not until(found := Scraped(operator.metrics())):
        assert time.monotonic() < deadline, found.text
        await asyncio.sleep(0.1)
    return found


async def test_jobs_and_nodes_by_state(operator: OperatorProcess, harness: OperatorHarness) -> None:
    leaves = ("left", "left", "right", "right")
    spine = {f"{TOPOLOGY}/spine": "top"}
    await harness.add_nodes(*({f"{TOPOLOGY}/leaf": leaf, **spine} for leaf in leaves))
    harness.nodes.default = PodScript(exit_after=None)
    here = {"namespace": harness.namespace}
    # The operator looks for new levels every 10 s.
    empty = await scraped(operator, lambda m: m.get("largest_free_block_gpus", level="spine") == 8)
    assert empty.get("nodes", state="free") == 4
    assert empty.get("gpus", state="free", level="", domain="") == 8
    assert empty.get("largest_free_block_gpus", level="leaf") == 4

    await harness.submit("running")
    await harness.phase("running", "Running")
    await harness.submit("waiting", **FOUR_NODES)

    def waits(found: Scraped) -> bool:
        reason = {"reason": "InsufficientGpus"}
        return found.get("job_waiting", job="waiting", **reason, **here) == 1

    both = await scraped(operator, waits)
    assert both.get("job_phase", job="running", phase="Running", **here) == 1
    assert both.get("job_phase", job="waiting", phase="Queued", **here) == 1
    assert both.get("job_phase", job="running", phase="Starting", **here) is None
    assert both.labels("job_waiting", "job") == {"waiting"}
    assert both.get("jobs", phase="Running") == both.get("queue_depth") == 1
    assert (both.get("oldest_wait_seconds") or 0) > 0
    assert both.get("gpus", state="used", level="", domain="") == 4
    by_leaf = {
        (both.get("gpus", state="used", level="leaf", domain=leaf), leaf) for leaf in set(leaves)
    }
    assert {count for count, _ in by_leaf} == {4, None}, "the job is in one leaf"
    assert both.get("largest_free_block_gpus", level="leaf") == 4
    assert both.get("gpus", state="used", level="spine", domain="top") == 4

    later = await scraped(
        operator, lambda m: (m.get("gpu_seconds_total", state="training") or 0) > 8
    )
    assert (later.get("gpu_seconds_total", state="waiting") or 0) > 0
    await harness.delete("running")
    gone = await scraped(operator, lambda m: "running" not in m.labels("job_phase", "job"))
    # The other job may have its nodes already.
    assert gone.get("jobs", phase="Running") == gone.get(
        "job_phase", job="waiting", phase="Running", **here
    )


async def test_failures_restarts_and_ends_by_reason(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes({}, {})
    before = Scraped(operator.metrics())

    def rise(found: Scraped, name: str, **labels: str) -> float:
        return (found.get(name, **labels) or 0) - (before.get(name, **labels) or 0)

    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("hit")
    await harness.runs("hit", attempt=0)
    harness.nodes.end(harness.namespace, "hit-0-1", 137)
    await harness.runs("hit", attempt=1)
    await scraped(operator, lambda m: rise(m, "gpu_seconds_total", state="lost") > 0)
    for index in range(2):
        harness.nodes.end(harness.namespace, f"hit-1-{index}", 0)
    await harness.phase("hit", "Succeeded")
    text = message("CorpusMissing", "no such file", "spec.data", "check the path", 2)
    wrong = PodScript(exit_after=0.5, exit_code=2, termination_message=text)
    harness.nodes.script(named("wrong-.*"), wrong)
    await harness.submit("wrong")
    await harness.phase("wrong", "Failed")
    text = message("MyOwnReason", "text", "spec", "", 3)
    own = PodScript(exit_after=0.5, exit_code=3, termination_message=text)
    harness.nodes.script(named("own-.*"), own)
    await harness.submit("own")
    await harness.phase("own", "Failed")

    def counted(found: Scraped) -> bool:
        return rise(found, "finished_total", result="Failed", reason="Other") == 1

    found = await scraped(operator, counted)
    assert rise(found, "finished_total", result="Succeeded", reason="Completed") == 1
    assert rise(found, "finished_total", result="Failed", reason="CorpusMissing") == 1
    for reason in ("ExitCode", "CorpusMissing", "Other"):
        assert rise(found, "failures_total", reason=reason) == 1, reason
    assert rise(found, "restarts_total", reason="ExitCode") == 1
    assert rise(found, "restarts_total", reason="CorpusMissing") == 0
    assert "MyOwnReason" not in found.text
    assert "_created" not in found.text
    assert found.labels("build_info", "version") == {VERSION}


async def test_a_node_that_is_not_ready_or_cordoned(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    first, second = await harness.add_nodes({}, {})
    await scraped(operator, lambda m: m.get("nodes", state="free") == 2)
    await harness.nodes.node_not_ready(first)
    await harness.api.patch("nodes", second, {"spec": {"unschedulable": True}})

    def shown(found: Scraped) -> bool:
        return found.get("nodes", state="unready") == found.get("nodes", state="cordoned") == 1

    found = await scraped(operator, shown)
    assert found.get("gpus", state="free", level="", domain="") == 0
    assert found.get("gpus", state="cordoned", level="", domain="") == 2


async def test_a_candidate_without_the_lease_shows_no_jobs(
    installed: ControlPlane,
    operator: OperatorProcess,
    harness: OperatorHarness,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    await harness.add_nodes({}, {})
    await harness.submit("job")
    await harness.phase("job", "Running", "Succeeded")
    await operator.shows(f'job="job",namespace="{harness.namespace}"')
    other = OperatorProcess(installed, tmp_path_factory.mktemp("candidate"))
    other.spawn()
    try:
        await asyncio.to_thread(_await_metrics, other)
        text = other.metrics()
    finally:
        other.stop()
    assert "llmtrain_operator_leader 0.0" in text
    for family in ("job_phase{", "jobs{", "nodes{", "gpus{", "queue_depth ", "oldest_wait"):
        assert f"llmtrain_operator_{family}" not in text


def _await_metrics(operator: OperatorProcess) -> None:
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while operator.ask(operator.metrics_port, "/metrics") != 200:
        assert operator.alive() and time.monotonic() < deadline, operator.tail()
        time.sleep(0.1)
