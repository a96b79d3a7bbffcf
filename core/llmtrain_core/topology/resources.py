"""Amounts of resources: what a pod requests of a node, by the rules of kube-scheduler.

An amount is a whole number: CPU in thousandths of a core, everything else in bytes or units.
Fractions are rounded up. Every pod takes one of the `pods` of its node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeVar

from llmtrain_core.api.base import read_quantity
from llmtrain_core.api.defaults import HUGE_PAGES

CPU, MEMORY, PODS = "cpu", "memory", "pods"
_MILLI = 1000
_BYTES = (MEMORY, "ephemeral-storage", HUGE_PAGES)
"""Starts of the names of resources whose unit is the byte."""
_POD_LEVEL = (CPU, MEMORY, HUGE_PAGES)
"""Starts of the names of resources that a pod may request as a whole."""

_NO_STATUS: Mapping[str, Any] = MappingProxyType({})

Raw = Mapping[str, Any]
"""A part of an object as the API server prints it."""
Amounts = Mapping[str, int]
"""Amount by resource."""
Number = TypeVar("Number", int, Fraction)


def is_device(resource: str) -> bool:
    """Return True for an extended resource: GPUs and other devices."""
    return "/" in resource


def is_huge_pages(resource: str) -> bool:
    """Return True for huge pages of any size."""
    return resource.startswith(HUGE_PAGES)


@lru_cache(maxsize=8192)
def _amount(resource: str, text: str) -> int:
    """Return an amount; 0 for text that is no quantity. Cached: every pod event needs it."""
    value = read_quantity(text)
    if value is None:
        return 0
    return -(-value * _MILLI // 1) if resource == CPU else -(-value // 1)


def amounts(quantities: Mapping[str, Any]) -> dict[str, int]:
    """Read quantities by resource, without those that are zero or no quantity."""
    found = {}
    for name, quantity in quantities.items():
        amount = _amount(name, str(quantity))
        if amount:
            found[name] = amount
    return found


def container_requests(resources: Mapping[str, Any]) -> dict[str, int]:
    """Return what a container requests. The default of a request is the limit."""
    limits, requests = resources.get("limits"), resources.get("requests")
    return amounts({**limits, **requests} if limits and requests else limits or requests or {})


def pod_requests(spec: Raw, status: Raw = _NO_STATUS) -> dict[str, int]:
    """Return what a pod requests, including one of the node's `pods`.

    A request of the whole pod replaces those of its containers. The overhead of a RuntimeClass is
    added.

    A pod can be resized while it runs. It then requests the largest of what its spec wants, what
    the kubelet has allocated, and what the containers have. The spec does not count if the kubelet
    has found that the new size never fits on the node.

    Source: `PodRequests` of k8s.io/component-helpers/resource, version 0.37, with the options that
    kube-scheduler sets by default (`PodInfo.CalculateResource`). Node resources of claims (the
    feature gate DRANodeAllocatableResources, which is off by default) are not counted.
    """
    total = of_containers(spec, _desired)
    resize = _Resize.of(status)
    if resize is not None:
        total = {} if resize.infeasible else total
        allocated, actual = resize.allocated_to_pod, resize.held_by_pod
        if allocated is None or actual is None:
            allocated = of_containers(spec, resize.allocated)
            actual = of_containers(spec, resize.actual)
        _raise_to(total, allocated)
        _raise_to(total, actual)
    if whole := (spec.get("resources") or {}).get("requests"):
        total |= _of_whole_pod(amounts(whole), resize)
    if overhead := spec.get("overhead"):
        _add(total, amounts(overhead))
    total[PODS] = 1
    return total


def _of_whole_pod(desired: dict[str, int], resize: _Resize | None) -> dict[str, int]:
    """Return the request of a pod as a whole."""
    found = desired
    if resize is not None and resize.has_pod_resources:
        found = {} if resize.infeasible else desired
        _raise_to(found, resize.held_by_pod or {})
        _raise_to(found, resize.allocated_to_pod or {})
    return {name: amount for name, amount in found.items() if name.startswith(_POD_LEVEL)}


def _desired(container: Raw) -> dict[str, int]:
    return container_requests(container.get("resources") or {})


@dataclass(frozen=True, slots=True)
class _Resize:
    """What the kubelet says of the resources of a pod."""

    infeasible: bool
    """Whether the size in the spec never fits on the node."""
    has_pod_resources: bool
    held_by_pod: dict[str, int] | None
    """Requests of `status.resources`; None if they are not reported."""
    allocated_to_pod: dict[str, int] | None
    """`status.allocatedResources`; None if they are not reported."""
    containers: Mapping[str, Raw]
    """Status by name of the container or init container."""

    @classmethod
    def of(cls, status: Raw) -> _Resize | None:
        """Read the status of a pod. Return None if it says nothing of resources."""
        conditions, whole = status.get("conditions") or (), status.get("resources")
        pending = next((c for c in conditions if c.get("type") == "PodResizePending"), None)
        containers = {
            container.get("name", ""): container
            for key in ("initContainerStatuses", "containerStatuses")
            for container in status.get(key) or ()
            if "allocatedResources" in container or "resources" in container
        }
        allocated = status.get("allocatedResources")
        if not (pending or containers or whole or allocated):
            return None
        held = (whole or {}).get("requests")
        return cls(
            infeasible=pending is not None and pending.get("reason") == "Infeasible",
            has_pod_resources=whole is not None,
            held_by_pod=None if held is None else amounts(held),
            allocated_to_pod=None if allocated is None else amounts(allocated),
            containers=containers,
        )

    def allocated(self, container: Raw) -> dict[str, int]:
        """Return what the kubelet has allocated to a container."""
        found = self.containers.get(container.get("name", ""), _NO_STATUS)
        if "allocatedResources" in found:
            return amounts(found["allocatedResources"] or {})
        return {} if self.infeasible else _desired(container)

    def actual(self, container: Raw) -> dict[str, int]:
        """Return the requests with which a container runs."""
        found = self.containers.get(container.get("name", ""), _NO_STATUS)
        requests = (found.get("resources") or {}).get("requests")
        return self.allocated(container) if requests is None else amounts(requests)


def of_containers(
    spec: Raw, amounts_of: Callable[[Raw], Mapping[str, Number]]
) -> dict[str, Number]:
    """Return the amounts of the containers of a pod together, from the amounts of each.

    Init containers run one after the other, before the containers. Those that restart always are
    sidecars: they keep running.
    """
    total: dict[str, Number] = {}
    for container in spec.get("containers") or ():
        _add(total, amounts_of(container))
    started: dict[str, Number] = {}
    most: dict[str, Number] = {}
    for container in spec.get("initContainers") or ():
        running, own = dict(started), amounts_of(container)
        if container.get("restartPolicy") == "Always":
            _add(total, own)
            _add(started, own)
        _add(running, own)
        _raise_to(most, running)
    _raise_to(total, most)
    return total


def _add(total: dict[str, Number], more: Mapping[str, Number]) -> None:
    for name, amount in more.items():
        total[name] = total[name] + amount if name in total else amount


def _raise_to(total: dict[str, Number], least: Mapping[str, Number]) -> None:
    for name, amount in least.items():
        total[name] = max(total[name], amount) if name in total else amount


def foreign_requests(spec: Raw, status: Raw = _NO_STATUS) -> dict[str, int]:
    """Return what a pod that is not of a job takes from jobs.

    kube-scheduler preempts a pod of negative priority for a pod of any job. Such pods keep capacity
    warm for others (placeholders for an autoscaler, batch work), so they take only devices.
    """
    found = pod_requests(spec, status)
    if (spec.get("priority") or 0) >= 0:
        return found
    return {name: amount for name, amount in found.items() if is_device(name)}


@lru_cache(maxsize=8192)
def _shared(items: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    return items


def compact(found: Amounts) -> tuple[tuple[str, int], ...]:
    """Return amounts as one object for equal ones: most pods of a cluster are copies of few."""
    return _shared(tuple(found.items()))


def amount_text(resource: str, amount: int) -> str:
    """Return an amount as a quantity: `500m`, `2Ti`. Bytes are rounded down to a tenth."""
    if resource == CPU:
        whole, rest = divmod(amount, _MILLI)
        return f"{amount}m" if rest else str(whole)
    if not resource.startswith(_BYTES):
        return str(amount)
    for power, unit in reversed(list(enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1))):
        if amount >= 1024**power:
            tenths = amount * 10 // 1024**power
            return f"{tenths // 10}{unit}" if tenths % 10 == 0 else f"{tenths / 10}{unit}"
    return str(amount)


def missing_text(wanted: Amounts, free: Iterable[tuple[str, int]]) -> str:
    """Return which resources a node lacks: `cpu 4 requested, 1 free`; empty if it has enough."""
    return "; ".join(
        f"{name} {amount_text(name, wanted[name])} requested, {amount_text(name, left)} free"
        for name, left in free
        if left < wanted[name]
    )
