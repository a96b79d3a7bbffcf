"""Cases of the wait reasons of nodes, domains, Fabrics and PriorityClasses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.support.operator_harness.advice import FABRICS, CaseBench, nodes_by_cause
from tests.support.operator_harness.harness import JOBS, LARGE, condition

H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
H200 = {"nvidia.com/gpu.product": "NVIDIA-H200"}
Case = Callable[[CaseBench], Awaitable[None]]
CASES: list[Case] = []


def case(run_case: Case) -> Case:
    CASES.append(run_case)
    return run_case


@case
async def gpus_of_another_job(bench: CaseBench) -> None:
    await bench.add_nodes({}, {}, {})
    await bench.runs_small("holder")
    await bench.runs_small("bystander")
    await bench.submit("job")
    message = await bench.wait_reason("job", "InsufficientGpus", "; 1 of ")
    assert [len(nodes) for nodes in nodes_by_cause(message).values()] == [1], (
        "one of the two is enough"
    )
    await bench.follow(message)
    await bench.starts("job")


@case
async def gpus_of_a_foreign_pod(bench: CaseBench) -> None:
    [node] = await bench.add_nodes({})
    amount = {"nvidia.com/gpu": "1"}
    container = {
        "name": "main",
        "image": "example.com/x:1",
        "resources": {"requests": amount, "limits": amount},
    }
    body = {"metadata": {"name": bench.tag}, "spec": {"nodeName": node, "containers": [container]}}
    await bench.api.create("pods", body, bench.namespace)
    await bench.small("job")
    message = await bench.wait_reason("job", "InsufficientGpus")
    assert nodes_by_cause(message) == {"nvidia.com/gpu in use": [node]}
    await bench.follow(message)
    await bench.starts("job")


@case
async def devices_of_another_job(bench: CaseBench) -> None:
    [node] = await bench.add_nodes({}, gpus=4)
    names = {"resources": {"limits": {"example.com/hca": "1"}}}
    status = {"capacity": {"example.com/hca": "1"}, "allocatable": {"example.com/hca": "1"}}
    await bench.node(f"{node}/status", {"status": status})
    await bench.runs_small("holder", workers=names)
    await bench.small("job", workers=names)
    message = await bench.wait_reason("job", "InsufficientGpus")
    assert nodes_by_cause(message) == {"example.com/hca in use": [node]}
    await bench.follow(message)
    await bench.starts("job")


@case
async def cordoned(bench: CaseBench) -> None:
    node, _ = await bench.add_nodes({}, {})
    await bench.node(node, {"spec": {"unschedulable": True}})
    await bench.submit("job")
    message = await bench.wait_reason("job", "InsufficientNodes", "1 cordoned")
    assert nodes_by_cause(message) == {"cordoned": [node]}
    await bench.follow(message)
    await bench.starts("job")


@case
async def not_ready(bench: CaseBench) -> None:
    node, _ = await bench.add_nodes({}, {})
    await bench.nodes.node_not_ready(node)
    await bench.submit("job")
    message = await bench.wait_reason("job", "InsufficientNodes", "1 not ready")
    assert nodes_by_cause(message) == {"not ready": [node]}
    await bench.follow(message)
    await bench.starts("job")


@case
async def tainted(bench: CaseBench) -> None:
    node, _ = await bench.add_nodes({}, {})
    taint = {"key": "example.com/reserved", "effect": "NoSchedule"}
    await bench.node(node, {"spec": {"taints": [taint]}})
    await bench.submit("job")
    message = await bench.wait_reason("job", "InsufficientNodes", "1 taint not tolerated")
    assert nodes_by_cause(message) == {"taint not tolerated": [node]}
    await bench.follow(message)
    await bench.starts("job")


@case
async def selected_by_nobody(bench: CaseBench) -> None:
    [node] = await bench.add_nodes({})
    await bench.node(node, {"metadata": {"labels": {"bench": "elsewhere"}}})
    await bench.small("job")
    await bench.wait_reason("job", "NoMatchingNodes", "node selector does not match")
    await bench.node(node, {"metadata": {"labels": {"bench": bench.tag}}})
    await bench.starts("job")


@case
async def excluded(bench: CaseBench) -> None:
    node, _ = await bench.add_nodes({}, {})
    await bench.submit("job", topology={"excludeNodes": [node]})
    message = await bench.wait_reason("job", "InsufficientNodes", "1 excluded by the job")
    assert nodes_by_cause(message) == {"excluded by the job": [node]}
    await bench.api.delete(JOBS, "job", bench.namespace)
    await bench.gone("job")
    await bench.submit("job")
    await bench.starts("job")


@case
async def nodes_without_enough_gpus(bench: CaseBench) -> None:
    [node] = await bench.add_nodes({}, gpus=1)
    await bench.small("job")
    await bench.wait_reason("job", "NoMatchingNodes", "1 has fewer than 2 nvidia.com/gpu")
    more = {"nvidia.com/gpu": "2"}
    await bench.node(f"{node}/status", {"status": {"capacity": more, "allocatable": more}})
    await bench.starts("job")


@case
async def gpus_that_are_too_small(bench: CaseBench) -> None:
    await bench.add_nodes(H100, H100)
    await bench.submit("job", **LARGE)
    await bench.wait_reason("job", "WillNotFit", "H100 has", "GiB", kind="Accepted")
    await bench.add_nodes(H200, start=2)
    # Which reason stands there hangs on the nodes of the other cases: those that its selector
    # does not match are counted too, and the nearest remedy may be one of them.
    expected = "2 GPU memory too small"
    job = await bench.wait(
        "job", lambda j: expected in condition(j, "Placed").get("message", ""), 60
    )
    assert condition(job, "Accepted")["status"] == "True"
    assert "; 1 of " in condition(job, "Placed")["message"], "the H200 counts"
    await bench.add_nodes(H200, start=3)
    await bench.starts("job")


def racks(bench: CaseBench, *names: str) -> tuple[str, list[dict[str, str]]]:
    """Return a label of this case only, and the labels of nodes in these racks."""
    label = f"example.com/rack-{bench.tag}"
    return label, [{label: name} for name in names]


@case
async def no_domain_with_enough_room(bench: CaseBench) -> None:
    label, nodes = racks(bench, "a", "a", "b", "b")
    await bench.add_nodes(*nodes)
    await bench.fabric(rack=label)
    for name, rack in (("one", "a"), ("two", "b")):
        selector = {"bench": bench.tag, label: rack}
        await bench.runs_small(name, workers={"nodeSelector": selector})
    await bench.submit("job", topology={"fabric": bench.tag, "require": "rack"})
    message = await bench.wait_reason("job", "DomainTooSmall", "in one rack", "it fits in rack ")
    assert [len(found) for found in nodes_by_cause(message).values()] == [1]
    await bench.follow(message)
    await bench.starts("job")


@case
async def no_domain_for_a_tensor_group(bench: CaseBench) -> None:
    label, nodes = racks(bench, "a", "a", "b")
    await bench.add_nodes(*nodes)
    await bench.fabric(rack=label)
    selector = {"bench": bench.tag, label: "a"}
    await bench.runs_small("holder", workers={"nodeSelector": selector})
    await bench.submit(
        "job",
        topology={"fabric": bench.tag, "tensorWithin": "rack"},
        parallelism={"tensor": 4, "data": 1},
        workers={"command": ["train"]},
    )
    message = await bench.wait_reason("job", "DomainTooSmall", "2 at a time in one rack")
    assert [len(found) for found in nodes_by_cause(message).values()] == [1]
    await bench.follow(message)
    await bench.starts("job")


@case
async def labels_that_are_missing(bench: CaseBench) -> None:
    names = await bench.add_nodes({}, {})
    await bench.fabric(rack="example.com/row")
    await bench.submit("job", topology={"fabric": bench.tag, "require": "rack"})
    expected = "2 nodes with no label example.com/row"
    await bench.wait_reason("job", "DomainTooSmall", expected, *names)
    for name in names:
        await bench.node(name, {"metadata": {"labels": {"example.com/row": "1"}}})
    await bench.starts("job")


@case
async def no_such_level(bench: CaseBench) -> None:
    await bench.add_nodes({"example.com/pod": "1"})
    fabric = await bench.fabric(rack="example.com/pod")
    await bench.small("job", topology={"fabric": bench.tag, "require": "galaxy"})
    await bench.wait_reason("job", "UnknownLevel", "spec.topology.require", "rack, node")
    far = {"name": "galaxy", "nodeLabel": "example.com/pod"}
    levels = [far, *fabric["spec"]["levels"][1:]]
    await bench.api.patch(FABRICS, bench.tag, {"spec": {"levels": levels}})
    await bench.starts("job")


@case
async def no_such_fabric(bench: CaseBench) -> None:
    await bench.add_nodes({})
    await bench.small("job", topology={"fabric": bench.tag})
    await bench.wait_reason("job", "FabricNotFound", bench.tag, "create it")
    await bench.fabric()
    await bench.starts("job")


@case
async def a_fabric_that_is_wrong(bench: CaseBench) -> None:
    await bench.add_nodes({})
    await bench.fabric()
    spec = {"preset": "no-such-preset", "levels": None}
    await bench.api.patch(FABRICS, bench.tag, {"spec": spec})
    await bench.small("job", topology={"fabric": bench.tag})
    await bench.wait_reason("job", "InvalidFabric", bench.tag, "no-such-preset")
    await bench.api.patch(FABRICS, bench.tag, {"spec": {"preset": "topograph"}})
    await bench.starts("job")


@case
async def no_such_priority_class(bench: CaseBench) -> None:
    await bench.add_nodes({})
    await bench.small("job", priorityClassName=bench.tag)
    await bench.wait_reason("job", "PriorityClassNotFound", bench.tag, "create it")
    await bench.priority_class()
    await bench.starts("job")
