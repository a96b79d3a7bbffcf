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
async def gpus_of_another_job(harness: CaseBench) -> None:
    await harness.add_nodes({}, {}, {})
    await harness.runs_small("holder")
    await harness.runs_small("bystander")
    await harness.submit("job")
    message = await harness.wait_reason("job", "InsufficientGpus", "; 1 of ")
    assert [len(nodes) for nodes in nodes_by_cause(message).values()] == [1], (
        "one of the two is enough"
    )
    await harness.follow(message)
    await harness.starts("job")


@case
async def gpus_and_cpus_of_a_foreign_pod(harness: CaseBench) -> None:
    [node] = await harness.add_nodes({})
    amount = {"nvidia.com/gpu": "1", "cpu": "62"}
    container = {
        "name": "main",
        "image": "example.com/x:1",
        "resources": {"requests": amount, "limits": amount},
    }
    body = {
        "metadata": {"name": harness.tag},
        "spec": {"nodeName": node, "containers": [container]},
    }
    await harness.api.create("pods", body, harness.namespace)
    await harness.small("job", workers={"resources": {"requests": {"cpu": 4}}})
    message = await harness.wait_reason("job", "InsufficientGpus", "4 cpu")
    assert nodes_by_cause(message) == {"nvidia.com/gpu in use and cpu in use": [node]}
    await harness.follow(message)
    await harness.starts("job")


@case
async def devices_of_another_job(harness: CaseBench) -> None:
    [node] = await harness.add_nodes({}, gpus=4)
    names = {"resources": {"limits": {"example.com/hca": "1"}}}
    status = {"capacity": {"example.com/hca": "1"}, "allocatable": {"example.com/hca": "1"}}
    await harness.node(f"{node}/status", {"status": status})
    await harness.runs_small("holder", workers=names)
    await harness.small("job", workers=names)
    message = await harness.wait_reason("job", "InsufficientGpus")
    assert nodes_by_cause(message) == {"example.com/hca in use": [node]}
    await harness.follow(message)
    await harness.starts("job")


@case
async def cordoned(harness: CaseBench) -> None:
    node, _ = await harness.add_nodes({}, {})
    await harness.node(node, {"spec": {"unschedulable": True}})
    await harness.submit("job")
    message = await harness.wait_reason("job", "InsufficientNodes", "1 cordoned")
    assert nodes_by_cause(message) == {"cordoned": [node]}
    await harness.follow(message)
    await harness.starts("job")


@case
async def not_ready(harness: CaseBench) -> None:
    node, _ = await harness.add_nodes({}, {})
    await harness.nodes.node_not_ready(node)
    await harness.submit("job")
    message = await harness.wait_reason("job", "InsufficientNodes", "1 not ready")
    assert nodes_by_cause(message) == {"not ready": [node]}
    await harness.follow(message)
    await harness.starts("job")


@case
async def tainted(harness: CaseBench) -> None:
    node, _ = await harness.add_nodes({}, {})
    taint = {"key": "example.com/reserved", "effect": "NoSchedule"}
    await harness.node(node, {"spec": {"taints": [taint]}})
    await harness.submit("job")
    message = await harness.wait_reason("job", "InsufficientNodes", "1 taint not tolerated")
    assert nodes_by_cause(message) == {"taint not tolerated": [node]}
    await harness.follow(message)
    await harness.starts("job")


@case
async def unwell(harness: CaseBench) -> None:
    node, _ = await harness.add_nodes({}, {})
    await harness.mark(node, "GPUMissing", "True", "GPUMissing7")
    await harness.submit("job")
    message = await harness.wait_reason("job", "InsufficientNodes", "1 avoided for aks/GPUMissing")
    cause = "avoided for aks/GPUMissing: condition GPUMissing=True, reason GPUMissing7"
    assert nodes_by_cause(message) == {cause: [node]}
    await harness.follow(message)
    await harness.starts("job")


@case
async def selected_by_nobody(harness: CaseBench) -> None:
    [node] = await harness.add_nodes({})
    await harness.node(node, {"metadata": {"labels": {"harness": "elsewhere"}}})
    await harness.small("job")
    await harness.wait_reason("job", "NoMatchingNodes", "node selector does not match")
    await harness.node(node, {"metadata": {"labels": {"harness": harness.tag}}})
    await harness.starts("job")


@case
async def excluded(harness: CaseBench) -> None:
    node, _ = await harness.add_nodes({}, {})
    await harness.submit("job", topology={"excludeNodes": [node]})
    message = await harness.wait_reason("job", "InsufficientNodes", "1 excluded by the job")
    assert nodes_by_cause(message) == {"excluded by the job": [node]}
    await harness.api.delete(JOBS, "job", harness.namespace)
    await harness.gone("job")
    await harness.submit("job")
    await harness.starts("job")


@case
async def nodes_without_enough_gpus(harness: CaseBench) -> None:
    [node] = await harness.add_nodes({}, gpus=1)
    await harness.small("job")
    await harness.wait_reason("job", "NoMatchingNodes", "1 has fewer than 2 nvidia.com/gpu")
    more = {"nvidia.com/gpu": "2"}
    await harness.node(f"{node}/status", {"status": {"capacity": more, "allocatable": more}})
    await harness.starts("job")


@case
async def gpus_that_are_too_small(harness: CaseBench) -> None:
    await harness.add_nodes(H100, H100)
    await harness.submit("job", **LARGE)
    await harness.wait_reason("job", "WillNotFit", "H100 has", "GiB", kind="Accepted")
    await harness.add_nodes(H200, start=2)
    # Which reason stands there hangs on the nodes of the other cases: those that its selector
    # does not match are counted too, and the nearest remedy may be one of them.
    expected = "2 GPU memory too small"
    job = await harness.wait(
        "job", lambda j: expected in condition(j, "Placed").get("message", ""), 60
    )
    assert condition(job, "Accepted")["status"] == "True"
    assert "; 1 of " in condition(job, "Placed")["message"], "the H200 counts"
    await harness.add_nodes(H200, start=3)
    await harness.starts("job")


def racks(harness: CaseBench, *names: str) -> tuple[str, list[dict[str, str]]]:
    """Return a label of this case only, and the labels of nodes in these racks."""
    label = f"example.com/rack-{harness.tag}"
    return label, [{label: name} for name in names]


@case
async def no_domain_with_enough_room(harness: CaseBench) -> None:
    label, nodes = racks(harness, "a", "a", "b", "b")
    await harness.add_nodes(*nodes)
    await harness.fabric(rack=label)
    for name, rack in (("one", "a"), ("two", "b")):
        selector = {"harness": harness.tag, label: rack}
        await harness.runs_small(name, workers={"nodeSelector": selector})
    await harness.submit("job", topology={"fabric": harness.tag, "require": "rack"})
    message = await harness.wait_reason("job", "DomainTooSmall", "in one rack", "it fits in rack ")
    assert [len(found) for found in nodes_by_cause(message).values()] == [1]
    await harness.follow(message)
    await harness.starts("job")


@case
async def no_domain_for_a_tensor_group(harness: CaseBench) -> None:
    label, nodes = racks(harness, "a", "a", "b")
    await harness.add_nodes(*nodes)
    await harness.fabric(rack=label)
    selector = {"harness": harness.tag, label: "a"}
    await harness.runs_small("holder", workers={"nodeSelector": selector})
    await harness.submit(
        "job",
        topology={"fabric": harness.tag, "tensorWithin": "rack"},
        parallelism={"tensor": 4, "data": 1},
        workers={"command": ["train"]},
    )
    message = await harness.wait_reason("job", "DomainTooSmall", "2 at a time in one rack")
    assert [len(found) for found in nodes_by_cause(message).values()] == [1]
    await harness.follow(message)
    await harness.starts("job")


@case
async def labels_that_are_missing(harness: CaseBench) -> None:
    names = await harness.add_nodes({}, {})
    await harness.fabric(rack="example.com/row")
    await harness.submit("job", topology={"fabric": harness.tag, "require": "rack"})
    expected = "2 nodes with no label example.com/row"
    await harness.wait_reason("job", "DomainTooSmall", expected, *names)
    for name in names:
        await harness.node(name, {"metadata": {"labels": {"example.com/row": "1"}}})
    await harness.starts("job")


@case
async def no_such_level(harness: CaseBench) -> None:
    await harness.add_nodes({"example.com/pod": "1"})
    fabric = await harness.fabric(rack="example.com/pod")
    await harness.small("job", topology={"fabric": harness.tag, "require": "galaxy"})
    await harness.wait_reason("job", "UnknownLevel", "spec.topology.require", "rack, node")
    far = {"name": "galaxy", "nodeLabel": "example.com/pod"}
    levels = [far, *fabric["spec"]["levels"][1:]]
    await harness.api.patch(FABRICS, harness.tag, {"spec": {"levels": levels}})
    await harness.starts("job")


@case
async def no_such_fabric(harness: CaseBench) -> None:
    await harness.add_nodes({})
    await harness.small("job", topology={"fabric": harness.tag})
    await harness.wait_reason("job", "FabricNotFound", harness.tag, "create it")
    await harness.fabric()
    await harness.starts("job")


@case
async def a_fabric_that_is_wrong(harness: CaseBench) -> None:
    await harness.add_nodes({})
    await harness.fabric()
    spec = {"preset": "no-such-preset", "levels": None}
    await harness.api.patch(FABRICS, harness.tag, {"spec": spec})
    await harness.small("job", topology={"fabric": harness.tag})
    await harness.wait_reason("job", "InvalidFabric", harness.tag, "no-such-preset")
    await harness.api.patch(FABRICS, harness.tag, {"spec": {"preset": "topograph"}})
    await harness.starts("job")


@case
async def no_such_priority_class(harness: CaseBench) -> None:
    await harness.add_nodes({})
    await harness.small("job", priorityClassName=harness.tag)
    await harness.wait_reason("job", "PriorityClassNotFound", harness.tag, "create it")
    await harness.priority_class()
    await harness.starts("job")
