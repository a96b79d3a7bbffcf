"""Devices of slices become amounts of a node, and claims take from them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest

from llmtrain_core.devices.capacity import DeviceClasses, NodeAmounts, NodeKinds, node_amounts
from llmtrain_core.devices.demand import AlignedDevices, DeviceKey, DeviceKind, demand_of
from llmtrain_core.devices.records import (
    ALL_NODES,
    Device,
    claim_record,
    class_record,
    devices_of_node,
    slice_record,
)
from llmtrain_core.validation.check import Job, check
from tests.support.devices.objects import (
    CLASSES,
    GPU_CLASS,
    GPU_DRIVER,
    NIC_CLASS,
    NIC_DRIVER,
    ROOT,
    claim,
    claims_of_workers,
    device,
    device_class,
    gpus,
    nics,
    resource_slice,
)
from tests.support.operator_harness.harness import job_object

pytestmark = pytest.mark.unit

GPU, NIC = DeviceKind(GPU_CLASS), DeviceKind(NIC_CLASS)
PAIR = AlignedDevices(ROOT, ((GPU, 1), (NIC, 1)))
KNOWN = DeviceClasses(map(class_record, CLASSES))


def devices(*slices: Any) -> list[Device]:
    records = [found for raw in slices if (found := slice_record(raw)) is not None]
    return [*devices_of_node(records)]


def counted(
    slices: Sequence[Any],
    keys: Iterable[DeviceKey],
    claims: Iterable[Any] = (),
    classes: DeviceClasses = KNOWN,
) -> NodeAmounts:
    records = [found for raw in claims if (found := claim_record(raw)) is not None]
    return node_amounts(NodeKinds(devices(*slices), classes), records, [*keys])


def free(found: NodeAmounts, key: DeviceKey) -> int:
    return found.total[key] - sum(taken.get(key, 0) for taken in found.taken.values())


def checked(**workers: Any) -> Job:
    found = check("job", job_object("job", "team", workers=workers)["spec"])
    assert isinstance(found, Job), found
    return found


def test_devices_of_a_class_are_counted_and_allocated_ones_are_taken() -> None:
    other = device("mig-0", "mig")
    slices = [gpus("n", 4), nics("n", [0, 1])]
    slices[0]["spec"]["devices"].append(other)
    used = [claim("one", "n", (GPU_DRIVER, "gpu-1"), (GPU_DRIVER, "mig-0"))]
    found = counted(slices, [GPU, NIC], used)
    assert found.total == {GPU: 4, NIC: 2}
    assert found.taken == {"one": {GPU: 1}}


def test_only_the_newest_generation_of_a_complete_pool_counts() -> None:
    old = resource_slice("n", GPU_DRIVER, [device(f"old-{i}", "gpu") for i in range(8)])
    new = resource_slice("n", GPU_DRIVER, [device("gpu-0", "gpu")], generation=2, slices=2)
    rest = resource_slice("n", GPU_DRIVER, [device("gpu-1", "gpu")], generation=2, slices=2)
    assert counted([old], [GPU]).total[GPU] == 8
    assert counted([old, new], [GPU]).total[GPU] == 0, "the driver is about to publish the rest"
    assert counted([new, old, rest], [GPU]).total[GPU] == 2


def test_devices_of_a_fabric_are_no_part_of_a_node() -> None:
    shared = resource_slice("n", GPU_DRIVER, [device("gpu-0", "gpu")])
    del shared["spec"]["nodeName"]
    for reach in ({"nodeSelector": {"nodeSelectorTerms": []}}, {"perDeviceNodeSelection": True}):
        assert slice_record({**shared, "spec": {**shared["spec"], **reach}}) is None
    everywhere = slice_record({**shared, "spec": {**shared["spec"], "allNodes": True}})
    assert everywhere is not None and everywhere.node == ALL_NODES


def test_a_tainted_device_counts_only_while_a_claim_has_it() -> None:
    bad = gpus("n", 2)
    bad["spec"]["devices"][0]["taints"] = [{"key": "xid", "effect": "NoSchedule"}]
    bad["spec"]["devices"][1]["taints"] = [{"key": "note", "effect": "None"}]
    assert counted([bad], [GPU]).total[GPU] == 1
    held = counted([bad], [GPU], [claim("one", "n", (GPU_DRIVER, "gpu-0"))])
    assert (held.total[GPU], free(held, GPU)) == (2, 1)


def test_admin_access_takes_nothing_and_what_kube_scheduler_claims_is_marked() -> None:
    watching = claim("admin", "n", (GPU_DRIVER, "gpu-0"))
    watching["status"]["allocation"]["devices"]["results"][0]["adminAccess"] = True
    by_request = claim(
        "extended",
        "n",
        (GPU_DRIVER, "gpu-1"),
        **{"resource.kubernetes.io__extended-resource-claim": "true"},
    )
    assert claim_record(watching) is None
    marked, other = claim_record(by_request), claim_record(claim("own", "n", (GPU_DRIVER, "g")))
    assert marked is not None and marked.by_scheduler
    assert other is not None and not other.by_scheduler
    pending = claim("pending", "n")
    assert claim_record(pending) is None


def test_selectors_of_a_job_count_apart_and_with_their_class() -> None:
    large = "device.attributes['gpu.example.com'].cores >= 100"
    requests = [
        {
            "name": "gpu",
            "deviceClassName": GPU_CLASS,
            "count": 2,
            "gpus": True,
            "selectors": [{"cel": {"expression": large}}],
        }
    ]
    job = checked(deviceClaims=[{"name": "devices", "requests": requests}])
    special = DeviceKind(GPU_CLASS, (large,))
    assert demand_of(job.spec) == {GPU: 2, special: 2}
    assert special.resource != GPU.resource and " " not in special.resource
    slices = [
        resource_slice(
            "n", GPU_DRIVER, [device(f"g{i}", "gpu", cores=50 * (i + 1)) for i in range(4)]
        )
    ]
    found = counted(slices, [GPU, special], [claim("one", "n", (GPU_DRIVER, "g0"))])
    assert found.total == {GPU: 4, special: 3}
    assert (free(found, GPU), free(found, special)) == (3, 3)


def test_aligned_devices_count_by_the_value_that_they_share() -> None:
    job = checked(deviceClaims=claims_of_workers(1, nics=1, per_pod=2, aligned=True))
    assert demand_of(job.spec) == {GPU: 2, NIC: 2, PAIR: 2}
    slices = [gpus("n", 4, per_root=2), nics("n", [0, 1, 7])]
    assert counted(slices, [PAIR]).total[PAIR] == 2, "two roots have a NIC, one NIC has no GPU"
    # The GPU and the NIC of two roots break two pairs; of one root, only one.
    apart = [claim("a", "n", (GPU_DRIVER, "gpu-0"), (GPU_DRIVER, "gpu-1"))]
    apart += [claim("b", "n", (NIC_DRIVER, "nic-1"))]
    same = [claim("a", "n", (GPU_DRIVER, "gpu-0"), (GPU_DRIVER, "gpu-1"))]
    same += [claim("b", "n", (NIC_DRIVER, "nic-0"))]
    assert free(counted(slices, [PAIR], apart), PAIR) == 0
    assert free(counted(slices, [PAIR], same), PAIR) == 1


def test_devices_without_the_attribute_are_not_aligned() -> None:
    loose = resource_slice("n", GPU_DRIVER, [device("gpu-0", "gpu"), device("gpu-1", "gpu")])
    assert counted([loose, nics("n", [0])], [PAIR]).total[PAIR] == 0


def largest_matching(found: Sequence[Device], taken: set[str]) -> int:
    """Return the most disjoint pairs of a GPU and a NIC with one root, by trying all."""
    left = [each for each in found if each.id[2] not in taken]
    key = ("resource.kubernetes.io", "pcieRoot")
    pairs = [
        {a.id[2], b.id[2]}
        for a, b in combinations(left, 2)
        if a.driver != b.driver and a.attributes[key] == b.attributes[key]
    ]

    def best(rest: list[set[str]]) -> int:
        if not rest:
            return 0
        first = rest[0]
        return max(best(rest[1:]), 1 + best([pair for pair in rest[1:] if not pair & first]))

    return best(pairs)


def test_aligned_amounts_equal_an_exhaustive_search() -> None:
    chance = random.Random(5)
    for _ in range(60):
        roots = [chance.randrange(3) for _ in range(chance.randrange(1, 5))]
        slices = [gpus("n", chance.randrange(1, 5), per_root=chance.choice((1, 2)))]
        slices.append(nics("n", roots))
        found = devices(*slices)
        taken = {each.id for each in found if chance.random() < 0.3}
        claims = [claim(f"c{i}", "n", (d[0], d[2])) for i, d in enumerate(sorted(taken))]
        amounts = counted(slices, [PAIR], claims)
        assert amounts.total[PAIR] == largest_matching(found, set())
        assert free(amounts, PAIR) == largest_matching(found, {d[2] for d in taken})


def test_the_newest_class_serves_an_extended_resource() -> None:
    def named(name: str, created: str) -> Any:
        return class_record(device_class(name, extended="example.com/gpu", created=created))

    old, new = named("old", "2026-01-01T00:00:00Z"), named("new", "2026-02-01T00:00:00Z")
    assert DeviceClasses([new, old]).extended == {"example.com/gpu": DeviceKind("new")}
    tie = named("earlier-name", "2026-02-01T00:00:00Z")
    assert DeviceClasses([new, tie]).extended == {"example.com/gpu": DeviceKind("earlier-name")}


def test_a_class_that_cannot_be_counted_has_a_problem_and_no_devices() -> None:
    strange = class_record(device_class(GPU_CLASS, "device.attributes.size() > 0"))
    classes = DeviceClasses([strange])
    (problem,) = classes.problems([GPU, PAIR])[:1]
    assert not problem.missing and "device.attributes.size() > 0" in problem.text
    assert classes.countable([GPU, PAIR]) == frozenset()
    assert KNOWN.countable([GPU, PAIR]) == {GPU, PAIR}
    (missing,) = KNOWN.problems([DeviceKind("none.example.com")])
    assert missing.missing and "'none.example.com'" in missing.text
