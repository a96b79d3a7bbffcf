"""What the plan says of a job on the nodes that it could use, or sits on. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.fabric import Nics
from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.memory.training_memory import memory
from llmtrain_core.plan.time.predict import predict, tokens_of
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.topology.inventory import Node, Taint
from llmtrain_core.topology.levels import NODE, FabricLevel
from llmtrain_core.topology.links import Links
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.records import JobRecord, NodeRecord
from llmtrain_operator.planning.assessment import Assessment, AssignedNodes, assess
from llmtrain_operator.planning.assessment_cache import AssessmentCache
from tests.support.operator_harness.harness import LARGE, job_object

pytestmark = pytest.mark.unit

H100, H200, A100 = "NVIDIA-H100-80GB-HBM3", "NVIDIA-H200", "NVIDIA-A100-SXM4-40GB"


def node(name: str, product: str | None, **changes: Any) -> Node:
    labels = {} if product is None else {"nvidia.com/gpu.product": product}
    return replace(Node(name, labels, {"nvidia.com/gpu": 2}), **changes)


def job(**spec: Any) -> Job:
    found = check("job", job_object("job", "ns", **spec)["spec"])
    assert isinstance(found, Job), found
    return found


def waiting(*nodes: Node, **spec: Any) -> Assessment:
    return assess(job(**spec), nodes, None)


def note(found: Assessment) -> str:
    assert found.plan is not None
    return str(found.plan.get("note", ""))


def test_the_figures_are_the_plans_own() -> None:
    subject = job(**LARGE)
    found = assess(subject, [node("a", H100)], None).plan
    setup = TrainingSetup.of(subject)
    hardware = CATALOGUE["H100"].in_nodes_of(2)
    expected = predict(setup, hardware, tokens_of(subject, setup))
    assert found is not None
    assert (found["hardware"], found["gpus"]) == ("H100", 4)
    assert found["parameters"] == expected.parameters == 8_030_261_248
    assert found["tokens"] == 100 * 8 * 8192
    assert found["totalFlops"] == pytest.approx(expected.total_flops, rel=1e-5)
    assert found["memory"] == {
        "perGpuBytes": expected.memory.parts,
        "totalBytes": expected.memory.total,
        "capacityBytes": expected.memory.capacity,
        "fits": False,
    }
    assert found["step"]["seconds"] == pytest.approx(expected.time.seconds, rel=1e-5)
    assert found["step"]["exposed"] == pytest.approx(dict(expected.time.exposed), rel=1e-5)
    assert found["step"]["collectives"] == pytest.approx(dict(expected.collectives), rel=1e-5)
    assert found["mfu"] == pytest.approx(expected.mfu, rel=1e-5)
    assert found["totalSeconds"] == pytest.approx(100 * expected.time.seconds, rel=1e-5)
    assert found["assumptions"] == list(expected.assumptions)
    assert "note" not in found


def test_what_cannot_fit_is_refused_with_figures_and_remedies() -> None:
    found = waiting(node("a", H100), node("b", H100), **LARGE)
    assert found.too_large is not None and not found.settled
    needed = memory(TrainingSetup.of(job(**LARGE)))
    for said in (
        "spec.training.microBatchSize",
        f"{needed.least / 2**30:.1f} GiB",
        "79.6 GiB",
        "the largest part is activations",
        "set training.microBatchSize to 1",
        'llmtrain.dev/allow-over-memory="true"',
    ):
        assert said in found.too_large


UNTOLERATED = Taint("team", "other", "NoSchedule")
PASSING = Taint("node.kubernetes.io/unschedulable", "", "NoSchedule")
VERDICTS = {
    "the largest decides": ((node("a", H100), node("b", H200)), {}, False),
    "too small": ((node("a", A100), node("b", H100)), {}, True),
    "selected": (
        (node("a", H100), node("b", H200)),
        {"nodeSelector": {"nvidia.com/gpu.product": H100}},
        True,
    ),
    "tainted": ((node("a", H100), node("b", H200, taints=(UNTOLERATED,))), {}, True),
    "tolerated": (
        (node("a", H100), node("b", H200, taints=(UNTOLERATED,))),
        {"tolerations": [{"key": "team", "operator": "Exists"}]},
        False,
    ),
    "down for now": (
        (node("a", H100), node("b", H200, ready=False, cordoned=True, taints=(PASSING,))),
        {},
        False,
    ),
    "too few GPUs": (
        (node("a", H100), node("b", H200, allocatable={"nvidia.com/gpu": 1})),
        {},
        True,
    ),
    "one does not say": ((node("a", H100), node("b", None)), {}, False),
    "none says": ((node("a", None),), {}, False),
    "a slice says": ((node("a", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"),), {}, False),
    "no node": ((), {}, False),
    "a trainer of other make": ((node("a", H100),), {"command": ["train"]}, False),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_only_what_is_certain_is_refused(case: str) -> None:
    nodes, workers, refused = VERDICTS[case]
    found = waiting(*nodes, workers=workers, **LARGE)
    assert (found.too_large is not None) is refused
    assert found.plan is not None


def test_slices_of_a_gpu_are_not_whole_ones() -> None:
    slices = {"nvidia.com/mig-1g.10gb": 2}
    found = waiting(
        node("a", H100, allocatable=slices),
        workers={"gpuResource": "nvidia.com/mig-1g.10gb"},
        **LARGE,
    )
    assert found.too_large is None and "hardware" not in (found.plan or {})
    assert "is not a whole GPU" in note(found)


def test_unknown_hardware_gives_no_times_and_says_so() -> None:
    found = waiting(node("a", None))
    plan = found.plan
    assert plan is not None and not found.settled
    assert not {"hardware", "step", "mfu", "tokensPerSecond", "totalSeconds", "days"} & plan.keys()
    assert set(plan["memory"]) == {"perGpuBytes", "totalBytes"}
    assert plan["parameters"] > 0 and plan["bubble"] == 0
    assert "nvidia.com/gpu.product" in note(found) and "no check of the memory" in note(found)


def test_notes_say_what_was_chosen() -> None:
    assert "H100, H200: planned for H200, the largest" in note(
        waiting(node("a", H100), node("b", H200))
    )
    assert "1 of the nodes that the job could use name no known GPU" in note(
        waiting(node("a", H100), node("b", None))
    )
    assert "llmtrain's own trainer" in note(
        waiting(node("a", H100), workers={"command": ["train"]})
    )


def test_a_job_without_a_model_has_no_plan() -> None:
    spec = job_object("job", "ns", workers={"command": ["train"]})["spec"]
    for field in ("model", "data", "training"):
        del spec[field]
    found = check("job", spec)
    assert isinstance(found, Job)
    assert assess(found, [node("a", H100)], None) == Assessment()


def assigned(
    *nodes: Node, over: float = 1.0, crossings: dict[str, int] | None = None
) -> AssignedNodes:
    placement = {
        "levels": [
            {"level": "spine", "domains": 2, "crossings": crossings or {}},
            {"level": "node", "domains": 2},
        ]
    }
    return AssignedNodes.of(placement, nodes, (FabricLevel("spine", "spine", over), NODE))


def test_a_placement_decides_the_hardware_and_the_uplinks() -> None:
    pair = (node("a", H100), node("b", H100))
    near = assess(job(**LARGE), (), assigned(*pair)).plan
    far = assess(job(**LARGE), (), assigned(*pair, over=8.0, crossings={"data": 2})).plan
    assert near is not None and far is not None
    for times in ("exposed", "collectives"):
        assert far["step"][times]["dp"] > near["step"][times]["dp"]
    assert not any("no placement" in text for text in near["assumptions"])
    mixed = assess(job(**LARGE), (), assigned(node("a", A100), node("b", H100)))
    assert (mixed.plan or {})["hardware"] == "A100-40"
    assert "A100-40, H100: planned for A100-40, the slowest" in note(mixed)
    assert "it needs more memory than its A100-40 have" in note(mixed)
    assert mixed.too_large is None, "it sits there already"


def test_the_links_of_a_fabric_count() -> None:
    subject, nodes = job(**LARGE), [node("a", H100), node("b", H100)]
    slow = Links(Nics(per_node=1, gbits_per_second=10.0))
    placed = AssignedNodes(nodes, {}, ())
    for assigned in (None, placed):
        usual, named = assess(subject, nodes, assigned).plan, assess(subject, nodes, assigned, slow)
        assert usual is not None and named.plan is not None
        assert named.plan["step"]["seconds"] > usual["step"]["seconds"]


class Cluster:
    """Nodes that change, and who is woken by it."""

    def __init__(self, *nodes: Node):
        self.nodes = {n.name: NodeRecord(n, "") for n in nodes}
        self.woken: list[str] = []
        self.assessments = AssessmentCache(
            lambda: [record.node for record in self.nodes.values()],
            self.nodes.get,
            lambda _: None,
            self.woken.append,
        )

    def put(self, changed: Node) -> None:
        old = self.nodes.get(changed.name)
        self.nodes[changed.name] = NodeRecord(changed, "")
        self.assessments.node_changed(old, self.nodes[changed.name])

    async def ask(self, subject: Job, **status: Any) -> Assessment | None:
        raw = {"metadata": {"generation": 1}, "spec": {}, "status": status}
        return await self.assessments.assess(JobRecord("uid", "ns", "job", 1, raw), subject)


async def test_assessments_are_kept_until_nodes_become_others() -> None:
    cluster, large = Cluster(node("a", H100)), job(**LARGE)
    first = await cluster.ask(large)
    assert first is not None and first.too_large
    assert await cluster.ask(large) is first
    cluster.put(node("a", H100, ready=False, taints=(PASSING,)))
    assert await cluster.ask(large) is first and not cluster.woken
    cluster.put(node("b", H200))
    assert cluster.woken == ["uid"], "a larger GPU is good news"
    second = await cluster.ask(large)
    assert second is not None and second.too_large is None
    cluster.put(node("c", H200))
    assert cluster.woken == ["uid"], "nothing can become better any more"


async def test_the_seat_of_a_running_job_does_not_depend_on_other_nodes() -> None:
    cluster, large = Cluster(node("a", H100), node("b", H100)), job(**LARGE)
    placement = {"attempt": 0, "blocks": [{"path": "", "nodes": ["a", "b"]}], "levels": []}
    first = await cluster.ask(large, placement=placement)
    cluster.put(node("c", H200))
    assert await cluster.ask(large, placement=placement) is first
    done = [{"type": "Succeeded", "status": "True"}]
    assert await cluster.ask(large, placement=placement, conditions=done) is None
    cluster.nodes.clear()
    moved = {**placement, "attempt": 1}
    assert await cluster.ask(large, placement=moved) is None, "all nodes are gone: the old stands"


async def test_nodes_with_too_small_gpus_are_left_out() -> None:
    cluster = Cluster(node("a", H100), node("b", H200), node("c", A100), node("d", None))

    def left_out(subject: Job, **metadata: Any) -> frozenset[str]:
        record = JobRecord("uid", "ns", "job", 1, {"metadata": metadata})
        return cluster.assessments.too_small(record, subject)

    assert left_out(job(**LARGE)) == {"a", "c"}
    assert left_out(job()) == frozenset()
    cluster.put(node("e", H100))
    assert left_out(job(**LARGE)) == {"a", "c", "e"}
    allowed = {"llmtrain.dev/allow-over-memory": "true"}
    assert left_out(job(**LARGE), annotations=allowed) == frozenset()
    assert left_out(job(**LARGE, workers={"command": ["train"]})) == frozenset()
    found = await cluster.ask(job(**LARGE))
    assert found is not None and "3 of them have too little memory and are excluded" in note(found)
