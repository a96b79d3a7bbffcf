"""How many devices of a node claims can get, and how many they have got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmtrain_core.devices.demand import AlignedDevices, DeviceKey, DeviceKind
from llmtrain_core.devices.records import ClaimRecord, ClassRecord, Device, DeviceId
from llmtrain_core.devices.selectors import UnsupportedExpressionError, compile_selector


@dataclass(frozen=True, slots=True)
class DeviceProblem:
    """Why devices cannot be counted: the class does not exist, or a selector is not supported."""

    text: str
    missing: bool
    """Whether the class does not exist."""


def _kinds_of(key: DeviceKey) -> tuple[DeviceKind, ...]:
    return (key,) if isinstance(key, DeviceKind) else tuple(kind for kind, _ in key.members)


class DeviceClasses:
    """The DeviceClasses of a cluster."""

    def __init__(self, classes: Iterable[ClassRecord] = ()):
        ranked = sorted(classes, key=lambda found: found.name, reverse=True)
        ranked.sort(key=lambda found: found.created)
        self._by_name = {found.name: found for found in ranked}
        self._faults: dict[str, DeviceProblem | None] = {}
        self.extended: Mapping[str, DeviceKind] = {
            found.extended_resource: DeviceKind(found.name)
            for found in ranked
            if found.extended_resource
        }
        """Devices by the extended resource that they serve.

        As for kube-scheduler, the newest of several classes counts, then the first by name.
        """

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @property
    def served(self) -> dict[str, str]:
        """Extended resources by the name of the amount of the devices that serve them."""
        return {kind.resource: name for name, kind in self.extended.items()}

    def problems(self, keys: Iterable[DeviceKey]) -> list[DeviceProblem]:
        """Return why some of these devices cannot be counted, each reason once."""
        found = (self.problem(key) for key in keys)
        return [*dict.fromkeys(each for each in found if each is not None)]

    def problem(self, key: DeviceKey) -> DeviceProblem | None:
        """Return why such devices cannot be counted, or None."""
        found = (
            self._fault_of_class(kind.class_name) or _fault(kind.class_name, kind.selectors)
            for kind in _kinds_of(key)
        )
        return next(filter(None, found), None)

    def countable(self, keys: Iterable[DeviceKey]) -> frozenset[DeviceKey]:
        """Return the keys whose devices can be counted."""
        return frozenset(key for key in keys if self.problem(key) is None)

    def _fault_of_class(self, name: str) -> DeviceProblem | None:
        found = self._by_name.get(name)
        if found is None:
            return DeviceProblem(f"no DeviceClass is named {name!r}", missing=True)
        if name not in self._faults:
            self._faults[name] = _fault(name, found.selectors)
        return self._faults[name]

    def of_class(self, name: str, devices: Iterable[Device]) -> list[Device]:
        """Return the devices of a class; none of one that does not exist."""
        found = self._by_name.get(name)
        return [] if found is None else selected(devices, found.selectors)


def _fault(class_name: str, selectors: Iterable[str]) -> DeviceProblem | None:
    """Return the first selector that is not supported, as a problem."""
    for expression in selectors:
        try:
            compile_selector(expression)
        except UnsupportedExpressionError as error:
            text = f"DeviceClass {class_name}: selector {expression!r}: {error}"
            return DeviceProblem(text, missing=False)
    return None


def selected(devices: Iterable[Device], selectors: Iterable[str]) -> list[Device]:
    """Return the devices that meet all of these expressions."""
    tests = [compile_selector(each) for each in selectors]
    return [device for device in devices if all(test(device) for test in tests)]


class NodeKinds:
    """The devices of a node by kind. The selectors of a kind are evaluated once.

    The kinds must be countable.
    """

    def __init__(self, devices: Sequence[Device], classes: DeviceClasses):
        self.devices = devices
        self.classes = classes
        self._known: dict[DeviceKind, list[Device]] = {}

    def keep(self, keys: Iterable[DeviceKey]) -> None:
        """Drop the kinds that these keys do not have."""
        kinds = {kind for key in keys for kind in _kinds_of(key)}
        self._known = {kind: found for kind, found in self._known.items() if kind in kinds}

    def _of(self, kind: DeviceKind) -> list[Device]:
        if kind not in self._known:
            self._known[kind] = self._selected(kind)
        return self._known[kind]

    def _selected(self, kind: DeviceKind) -> list[Device]:
        if not kind.selectors:
            return self.classes.of_class(kind.class_name, self.devices)
        return selected(self._of(DeviceKind(kind.class_name)), kind.selectors)

    def amount(self, key: DeviceKey, gone: Collection[DeviceId]) -> int:
        """Return how many of a key there are without the devices that are gone."""
        if isinstance(key, DeviceKind):
            return sum(device.id not in gone for device in self._of(key))
        return self._sets(key, gone)

    def _sets(self, key: AlignedDevices, gone: Collection[DeviceId]) -> int:
        """Return the number of sets that devices can form, each within one value."""
        domain, _, name = key.attribute.rpartition("/")
        by_value: list[tuple[Counter[object], int]] = []
        for kind, count in key.members:
            free = (device for device in self._of(kind) if device.id not in gone)
            values = (device.attributes.get((domain, name)) for device in free)
            by_value.append((Counter(value for value in values if value is not None), count))
        common = set(by_value[0][0]).intersection(*(found for found, _ in by_value[1:]))
        return sum(min(found[value] // count for found, count in by_value) for value in common)


@dataclass(frozen=True, slots=True)
class NodeAmounts:
    """What a node has of each key, and what allocated claims take of it."""

    total: Mapping[DeviceKey, int]
    taken: Mapping[str, Mapping[DeviceKey, int]]
    """By UID of the claim. The sum is what is missing for the claims of others."""

    def joined(self, other: NodeAmounts) -> NodeAmounts:
        """Return these amounts and those of other keys of the same node."""
        claims = self.taken.keys() | other.taken.keys()
        taken = {uid: {**self.taken.get(uid, {}), **other.taken.get(uid, {})} for uid in claims}
        return NodeAmounts({**self.total, **other.total}, taken)


def node_amounts(
    kinds: NodeKinds, claims: Collection[ClaimRecord], keys: Collection[DeviceKey]
) -> NodeAmounts:
    """Count the devices of a node. Those that are tainted count only as long as a claim has them.

    Two claims can break the same set of aligned devices. So each takes what is missing after it
    and was not missing before; the order is that of the UIDs.
    """
    held = {device for claim in claims for device in claim.devices}
    gone = {device.id for device in kinds.devices if device.tainted and device.id not in held}
    total = left = {key: kinds.amount(key, gone) for key in keys}
    taken: dict[str, Mapping[DeviceKey, int]] = {}
    for claim in sorted(claims, key=lambda claim: claim.uid):
        gone.update(claim.devices)
        after = {key: kinds.amount(key, gone) for key in keys}
        lost = {key: left[key] - after[key] for key in keys if left[key] > after[key]}
        if lost:
            taken[claim.uid] = lost
        left = after
    return NodeAmounts(total, taken)
