"""Whether a whole gang fits into the ResourceQuotas of its namespace. Pure.

Kubernetes charges each pod when it is created. A gang that creates 7 of 8 pods holds its nodes and
never starts. So the sum of the gang is compared with every quota before it gets nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from llmtrain_core.api.base import read_quantity
from llmtrain_core.devices.demand import CLASS_PREFIX, SharedClaims
from llmtrain_core.topology.resources import is_huge_pages, of_containers

_COMPUTE = ("cpu", "memory", "ephemeral-storage")
_CLAIM_COUNT = "count/resourceclaims.resource.k8s.io"
_MAX_NAMED = 3

Amounts = Mapping[str, Fraction]
"""Amount by name of a resource, as ResourceQuotas name it."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A condition on the pods that a quota counts."""

    name: str
    operator: str = "Exists"
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResourceQuota:
    """A ResourceQuota of a namespace."""

    name: str
    hard: Amounts
    used: Amounts
    scopes: tuple[Scope, ...] = ()


@dataclass(frozen=True, slots=True)
class PodCharge:
    """What one pod is charged for, and what decides which quotas count it."""

    amounts: Amounts
    priority_class: str = ""
    best_effort: bool = False
    terminating: bool = False


Charge = tuple[PodCharge, int]
"""A number of equal pods."""


def read_quota(raw: Mapping[str, Any]) -> ResourceQuota:
    """Read a ResourceQuota object. Its status has the limits that are in force."""
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    selector = (spec.get("scopeSelector") or {}).get("matchExpressions") or ()
    return ResourceQuota(
        raw["metadata"]["name"],
        _amounts({**(spec.get("hard") or {}), **(status.get("hard") or {})}),
        _amounts(status.get("used") or {}),
        (
            *(Scope(name) for name in spec.get("scopes") or ()),
            *(
                Scope(item["scopeName"], item["operator"], tuple(item.get("values") or ()))
                for item in selector
            ),
        ),
    )


def charge_of(spec: Mapping[str, Any]) -> PodCharge:
    """Return what a pod with this spec is charged for, by the rules of Kubernetes."""
    requests, limits = _resources(spec, "requests"), _resources(spec, "limits")
    charged: dict[str, Fraction] = {"pods": Fraction(1), "count/pods": Fraction(1)}
    for name, amount in requests.items():
        charged[f"requests.{name}"] = amount
        if name in _COMPUTE or is_huge_pages(name):
            charged[name] = amount
    if claims := spec.get("resourceClaims"):
        charged[_CLAIM_COUNT] = Fraction(len(claims))
    for name in _COMPUTE:
        if name in limits:
            charged[f"limits.{name}"] = limits[name]
    return PodCharge(
        charged,
        spec.get("priorityClassName") or "",
        best_effort=not any(name in ("cpu", "memory") for name in (*requests, *limits)),
        terminating=spec.get("activeDeadlineSeconds") is not None,
    )


def with_resources(charge: PodCharge, amounts: Mapping[str, int]) -> PodCharge:
    """Return a charge with these amounts of devices and huge pages."""
    if not amounts:
        return charge
    charged = dict(charge.amounts)
    for name, amount in amounts.items():
        charged[f"requests.{name}"] = Fraction(amount)
        if is_huge_pages(name):
            charged[name] = Fraction(amount)
    return replace(charge, amounts=charged)


def with_claims(charge: PodCharge, needs: Mapping[str, int], shared: int = 0) -> PodCharge:
    """Return a charge with the devices that the claims of the pod have, by class.

    `needs` are the amounts that the pod takes of its node. Other names are left out. `shared` of
    its claims are those of its gang.
    """
    charged = _devices(needs)
    if shared:
        charged[_CLAIM_COUNT] = charge.amounts.get(_CLAIM_COUNT, Fraction(shared)) - shared
    return replace(charge, amounts={**charge.amounts, **charged}) if charged else charge


def shared_charge(shared: SharedClaims) -> Amounts:
    """Return what a gang is charged for the claims that its pods share."""
    if not shared.count:
        return {}
    devices = _devices({key.resource: amount for key, amount in shared.amounts})
    return {_CLAIM_COUNT: Fraction(shared.count), **devices}


def _devices(amounts: Mapping[str, int]) -> dict[str, Fraction]:
    return {
        f"{name.removeprefix(CLASS_PREFIX)}.deviceclass.resource.k8s.io/devices": Fraction(amount)
        for name, amount in amounts.items()
        if name.startswith(CLASS_PREFIX)
    }


class QuotaRoom:
    """The quotas of a namespace, with the pods that its jobs will create: they are not charged yet.

    These are added up once, and then many gangs are compared with the sums.
    """

    def __init__(self, quotas: Iterable[ResourceQuota], others: Iterable[Charge] = ()):
        """`others` are the pods to come."""
        self._promised = [(quota, dict[str, Fraction]()) for quota in quotas]
        for pods in others:
            self.add(pods)

    def add(self, pods: Charge) -> None:
        """Count further pods to come."""
        for quota, promised in self._promised:
            _add(promised, quota, pods)

    def exceeded(self, gang: Charge, objects: Amounts = MappingProxyType({})) -> str | None:
        """Return which quota the gang exceeds, and by what, or None.

        `objects` are other objects that the gang needs.
        """
        for quota, promised in self._promised:
            wanted = {} if quota.scopes else dict(objects)
            _add(wanted, quota, gang)
            parts = list(_excess(quota, wanted, promised))
            if parts:
                more = f" and {len(parts) - _MAX_NAMED} more" if len(parts) > _MAX_NAMED else ""
                return f"quota {quota.name}: {', '.join(parts[:_MAX_NAMED])}{more}"
        return None


def exceeded_quota(
    quotas: Iterable[ResourceQuota],
    gang: Charge,
    others: Iterable[Charge] = (),
    objects: Amounts = MappingProxyType({}),
) -> str | None:
    """Return which quota the gang exceeds beside the pods to come, and by what, or None."""
    return QuotaRoom(quotas, others).exceeded(gang, objects)


def _add(amounts: dict[str, Fraction], quota: ResourceQuota, pods: Charge) -> None:
    """Add what a quota counts of pods."""
    pod, count = pods
    for name, amount in pod.amounts.items() if _counts(quota, pod) else ():
        amounts[name] = amounts.get(name, Fraction(0)) + amount * count


def _excess(quota: ResourceQuota, wanted: Amounts, promised: Amounts) -> Iterator[str]:
    for name, hard in sorted(quota.hard.items()):
        amount, coming = wanted.get(name, Fraction(0)), promised.get(name, Fraction(0))
        used = quota.used.get(name, Fraction(0))
        if amount and used + coming + amount > hard:
            taken = _text(used) + (f" + {_text(coming)} of pods to come" if coming else "")
            yield f"{name} requested {_text(amount)}, used {taken}, limit {_text(hard)}"


def _counts(quota: ResourceQuota, pod: PodCharge) -> bool:
    return all(_matches(scope, pod) for scope in quota.scopes)


def _matches(scope: Scope, pod: PodCharge) -> bool:
    if scope.name == "PriorityClass":
        named = pod.priority_class
        return {
            "In": named in scope.values,
            "NotIn": named not in scope.values,
            "Exists": bool(named),
            "DoesNotExist": not named,
        }.get(scope.operator, False)
    return {
        "Terminating": pod.terminating,
        "NotTerminating": not pod.terminating,
        "BestEffort": pod.best_effort,
        "NotBestEffort": not pod.best_effort,
    }.get(scope.name, False)


def _resources(spec: Mapping[str, Any], kind: str) -> dict[str, Fraction]:
    """Return the requests or limits of a pod."""
    total = of_containers(spec, lambda container: _container(container, kind))
    if kind == "requests" or total:
        for name, amount in _amounts(spec.get("overhead") or {}).items():
            total[name] = total.get(name, Fraction(0)) + amount
    return total


def _container(container: Mapping[str, Any], kind: str) -> dict[str, Fraction]:
    """Return the requests or limits of a container. The default of a request is the limit."""
    resources = container.get("resources") or {}
    found = _amounts(resources.get(kind) or {})
    return {**_amounts(resources.get("limits") or {}), **found} if kind == "requests" else found


def _amounts(raw: Mapping[str, Any]) -> dict[str, Fraction]:
    """Read amounts. One that is not a quantity is left out."""
    found = ((name, read_quantity(str(amount))) for name, amount in raw.items())
    return {name: value for name, value in found if value is not None}


def _text(amount: Fraction) -> str:
    """Return an amount: a whole number, in Mi where possible, or in thousandths."""
    if amount.denominator != 1:
        return f"{float(amount * 1000):g}m"
    whole = amount.numerator
    return f"{whole // 2**20}Mi" if whole and whole % 2**20 == 0 else str(whole)
